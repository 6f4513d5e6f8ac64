"""Copies a database in use, and restores a copy: SQLite by its backup interface, PostgreSQL by pg_dump and pg_restore."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, MetaData, create_engine, inspect, text

from flexlora_server.database.engine import migration_engine
from flexlora_server.database.migrate import LOCK_CLASS, RESTORE_LOCK
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
    """Restore the copy in the folder into the empty database of `restoring`: all of it or nothing.

    Raises:
        StartupError: as `copy_out`.
    """
    kind = url.get_backend_name()
    if kind == "postgresql":
        _run("pg_restore", url, "--no-owner", "--exit-on-error", "--single-transaction", str(folder / COPY_NAMES[kind]))
        return
    try:
        _copy(folder / COPY_NAMES[kind], Path(str(url.database)))
    except BaseException:
        clear(url)
        raise


def _copy(source: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as writing:
            reading.backup(writing)
    except sqlite3.Error as error:
        raise StartupError(f"the database {source} cannot be copied to {target}: {error}") from error


@contextmanager
def restoring(url: URL) -> Iterator[Callable[[], bool]]:
    """Exclude other restores of this database; the end of the process ends that too.

    Yields a function that tells whether the database holds no table; it fails where others are no longer excluded.

    Raises:
        StartupError: another restore is under way.
    """
    if url.get_backend_name() == "sqlite":
        with _locked_folder(Path(str(url.database)).parent):
            yield lambda: _is_empty_sqlite(url)
        return
    engine = migration_engine(url)  # without timeouts
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.scalar(text(f"SELECT pg_try_advisory_lock({LOCK_CLASS}, {RESTORE_LOCK})")):
                raise _another_restore()
            yield lambda: _is_empty(connection)
    finally:
        engine.dispose()


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _another_restore() from None
        yield
    finally:
        os.close(descriptor)


def _another_restore() -> StartupError:
    return StartupError(
        "another `flexlora-server restore` into this place is under way: nothing was restored by this one"
    )


def _is_empty_sqlite(url: URL) -> bool:
    if not Path(str(url.database)).exists():
        return True
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return _is_empty(connection)
    finally:
        engine.dispose()


def _is_empty(connection: Connection) -> bool:
    return not inspect(connection).get_table_names()


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
