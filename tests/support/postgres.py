"""A PostgreSQL of one test's own, to be stopped and started while it is in use."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL

from flexlora_server.database.transactions import Store
from tests.support.databases import create_database, postgres_cluster, postgres_programs


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL with one migrated, empty database."""

    programs: Path
    folder: Path
    url: URL

    def stop(self) -> None:
        """At once, as if the machine had lost power: connections are cut, nothing is finished."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Again as before; returns when it takes connections."""
        self._control("-l", str(self.folder / "log"), "restart")  # finds its options, which `start` would not

    def _control(self, *arguments: str) -> None:
        command = [str(self.programs / "pg_ctl"), "-D", str(self.folder / "data"), "-w", *arguments]
        user = "postgres" if os.geteuid() == 0 else None
        subprocess.run(command, check=True, user=user, cwd=self.folder, stdout=subprocess.DEVNULL)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of its own; skips the test where none is installed."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_cluster(programs) as folder:
        url = create_database(folder, "outages")
        store = Store(url)
        store.migrate()
        store.close()
        yield Postgres(programs, folder, url)
