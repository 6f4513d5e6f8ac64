"""Copies a database in use, and restores a copy: SQLite by its backup interface, PostgreSQL by pg_dump and pg_restore."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, MetaData, create_engine, inspect, text

from flexlora_server.database.queries.blobs import referenced_blobs
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError

COPY_NAMES = {"sqlite": "flexlora.db", "postgresql": "database.dump"}  # in a backup, by the kind of database


def copy_out(store: Store, folder: Path) -> frozenset[str]:
    """Copy the database into the folder; the digests of the blobs that the copy names.

    Raises:
        StartupError: SQLite cannot copy it, or PostgreSQL's programs are missing or fail.
    """
    kind = store.url.get_backend_name()
    if kind == "postgresql":
        return _dump(store, folder / COPY_NAMES[kind])
    target = folder / COPY_NAMES[kind]
    _copy(Path(str(store.url.database)), target)
    copied = Store(store.url.set(database=str(target)))
    try:
        with copied.reading() as tx:
            return referenced_blobs(tx)
    finally:
        copied.close()
        with closing(sqlite3.connect(target)) as copy:
            copy.execute("PRAGMA journal_mode=DELETE")  # no separate journal file


def _dump(store: Store, target: Path) -> frozenset[str]:
    with store.reading() as tx:  # one snapshot for the dump and for the blobs it names
        snapshot = tx.session.scalar(text("SELECT pg_export_snapshot()"))
        _run("pg_dump", store.url, "--format=custom", f"--snapshot={snapshot}", f"--file={target}")
        return referenced_blobs(tx)


def copy_in(url: URL, folder: Path) -> None:
    """Restore the database from the copy in the folder.

    Raises:
        StartupError: as `copy_out`.
    """
    kind = url.get_backend_name()
    if kind == "postgresql":
        _run("pg_restore", url, "--no-owner", "--exit-on-error", "--single-transaction", str(folder / COPY_NAMES[kind]))
        return
    target = Path(str(url.database))
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(folder / COPY_NAMES[kind], target)


def _copy(source: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
            reading.backup(writing)
    except sqlite3.Error as error:
        raise StartupError(f"the database {source} cannot be copied to {target}: {error}") from error


def is_empty(url: URL) -> bool:
    """Whether the database holds no table; a SQLite file need not exist."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return True
    engine = create_engine(url)
    try:
        return not inspect(engine).get_table_names()
    finally:
        engine.dispose()


def clear(url: URL) -> None:
    """Delete what `copy_in` has restored into an empty database."""
    if url.get_backend_name() == "sqlite":
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{url.database}{suffix}").unlink(missing_ok=True)
        return
    engine, tables = create_engine(url), MetaData()
    with engine.begin() as connection:
        tables.reflect(connection)
        tables.drop_all(connection)
    engine.dispose()


def _run(program: str, url: URL, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise StartupError(
            f"{program} is not on PATH: install PostgreSQL's client programs (Debian: postgresql-client)"
        )
    address = url.set(drivername="postgresql", password=None).render_as_string()
    password = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    command = [program, f"--dbname={address}", *arguments]
    completed = subprocess.run(command, env=os.environ | password, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        raise StartupError(f"{program} failed: {' '.join(completed.stderr.split())[:1000]}")
