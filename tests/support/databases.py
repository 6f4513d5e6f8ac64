"""Real databases for the tests: SQLite files, and a PostgreSQL cluster of our own on a Unix socket."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import pytest
from sqlalchemy import URL, NullPool, create_engine, text

from flexlora_server.database.transactions import Store

# for tests of what no database has to do with: a mark of one test, or of a module as its `pytestmark`
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
# for tests of rules that are one for both databases, and take long: scripts/test-slow tries them on PostgreSQL
MOSTLY_ON_SQLITE = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)


@cache
def _sqlite_at_head() -> bytes:
    """An empty database of the newest schema: migrating takes as long as a small test."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "flexlora.db"
        store = Store(sqlite_url(path))
        store.migrate()
        store.close()
        return path.read_bytes()


def sqlite_url(path: Path) -> URL:
    """The URL of a database in this file."""
    return URL.create("sqlite", database=str(path))


def migrated_sqlite(folder: Path) -> URL:
    """A migrated, empty database in `folder`."""
    path = folder / "flexlora.db"
    path.write_bytes(_sqlite_at_head())
    return sqlite_url(path)


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; None where PostgreSQL is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextmanager
def postgres_cluster(programs: Path, durable: bool = False) -> Iterator[Path]:
    """A running PostgreSQL; the folder of its socket. It refuses to run as root, so root runs it as `postgres`.

    durable: it syncs what it commits, as a real one does; for tests that is only slow.
    """
    user = "postgres" if os.geteuid() == 0 else None
    # not below a TMPDIR of one's own: the path of a socket is short, and `postgres` must be let in
    place = "/dev/shm" if gettempdir() == "/dev/shm" else "/tmp"
    with TemporaryDirectory(prefix="flexlora-pg-", dir=place) as folder:
        if user is not None:
            shutil.chown(folder, user)
        data = f"{folder}/data"
        fsync = "on" if durable else "off"
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync={fsync} -c max_connections=200"
        options += " -c max_wal_size=64MB"

        def run(*command: str) -> None:
            subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

        run(str(programs / "initdb"), "-D", data, "-U", "flexlora", "--auth=trust", "--no-sync")
        run(str(programs / "pg_ctl"), "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield Path(folder)
        finally:
            run(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")


def postgres_url(socket: Path, database: str) -> URL:
    """The URL of a database in the cluster."""
    return URL.create("postgresql+psycopg", "flexlora", database=database, query={"host": str(socket)})


def create_database(socket: Path, database: str, template: str = "template1") -> URL:
    """A new database, a copy of `template`."""
    _administer(socket, f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
    return postgres_url(socket, database)


def drop_database(socket: Path, database: str) -> None:
    """Delete it, whoever is still connected: each takes 7 MB."""
    _administer(socket, f'DROP DATABASE "{database}" WITH (FORCE)')


def _administer(socket: Path, command: str) -> None:
    admin = create_engine(postgres_url(socket, "postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(command))
