"""Makes sites: a migrated database of either kind, and a folder, in memory where possible."""

import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import URL

from flexlora_server.database.transactions import Store
from tests.chaos.site import Site, site
from tests.support.databases import create_database, postgres_cluster, postgres_programs

_MEMORY = Path("/dev/shm")
_databases = itertools.count()


@contextmanager
def cluster(database: str) -> Iterator[Path | None]:
    """For the block, a PostgreSQL where one is asked for; its socket's folder."""
    if database == "sqlite":
        yield None
        return
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_cluster(programs) as socket:
        yield socket


@contextmanager
def new_site(socket: Path | None) -> Iterator[Site]:
    """A site on a new database, in PostgreSQL where its socket is given."""
    with TemporaryDirectory(prefix="flexlora-chaos-", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        folder = Path(name)
        if socket is None:
            url = URL.create("sqlite", database=str(folder / "flexlora.db"))
        else:
            url = create_database(socket, f"chaos_{os.getpid()}_{next(_databases)}")
        store = Store(url)
        store.migrate()
        store.close()
        gc.collect()
        gc.freeze()  # what was imported stays: no need to look through it again and again
        with site(url, folder) as here:
            yield here
