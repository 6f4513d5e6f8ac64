"""A database in use is not migrated, whatever uses it and however that ends; nor used while it is migrated."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from flexlora_server.database import engine, migrate
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from tests.support.databases import ON_SQLITE, create_database
from tests.support.processes import until

ADD = "op.add_column('runs', sa.Column('more', sa.Integer()))"


def command(name: str, url: URL, folder: Path) -> "subprocess.Popen[str]":
    """One of `flexlora-server`'s commands, as a process of this version."""
    environment = {
        "FLEXLORA_DATA_DIR": str(folder),
        "FLEXLORA_DATABASE_URL": url.render_as_string(hide_password=False),
        "FLEXLORA_PORT": "0",
        "FLEXLORA_WORKERS": "0",
        "OMP_NUM_THREADS": "1",
    }
    command_line = [sys.executable, "-m", "flexlora_server.cli", name]
    return subprocess.Popen(
        command_line, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def refused(url: URL) -> None:
    store = Store(url)
    with pytest.raises(StartupError, match=r"in use .* stop every .*serve.*worker"):
        store.migrate()
    store.close()


def run_migrate(url: URL) -> None:
    store = Store(url)
    store.migrate()
    store.check_head()
    store.close()


def test_not_while_it_is_served(database_url: URL, next_schema: Callable[[str], None], tmp_path: Path) -> None:
    process = command("serve", database_url, tmp_path / "data")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Coordinator on")
        again = command("migrate", database_url, tmp_path / "data")
        output, _ = again.communicate()
        assert (again.returncode, "at the newest schema" in output) == (0, True), "nothing to do for this version"
        next_schema(ADD)
        refused(database_url)
    finally:
        kill(process)
    run_migrate(database_url)


@pytest.mark.slow
@ON_SQLITE  # PostgreSQL counts sessions, whatever program they are of
def test_not_while_a_worker_runs(database_url: URL, next_schema: Callable[[str], None], tmp_path: Path) -> None:
    process = command("worker", database_url, tmp_path / "data")
    try:
        until((tmp_path / "data" / "temporary").exists, "the worker has opened the database, and then its storage")
        next_schema(ADD)
        refused(database_url)
    finally:
        kill(process)
    run_migrate(database_url)


def test_nobody_starts_while_it_is_migrated(
    database_url: URL, next_schema: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SQLITE_BUSY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(engine, "STATEMENT_TIMEOUT_S", 0.1)
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    for path in (begun, go_on):
        os.mkfifo(path)
    starting = Store(database_url)
    next_schema(f"{ADD}; open({str(begun)!r}, 'w').close(); open({str(go_on)!r}).close()")
    migrating = threading.Thread(target=run_migrate, args=[database_url])
    migrating.start()
    begun.read_bytes()  # returns when the migration is under way
    try:
        with pytest.raises(StartupError, match="wait where it is being migrated"):
            starting.check_head()
    finally:
        starting.close()
        go_on.write_bytes(b"")
        migrating.join()
    run_migrate(database_url)


MIGRATE = """
import sys
from sqlalchemy import make_url
from flexlora_server.database import migrate
from flexlora_server.database.transactions import Store
migrate.__file__ = sys.argv[1]
Store(make_url(sys.argv[2])).migrate()
"""


def test_a_migration_that_is_killed_leaves_the_database_as_it_was(
    database_url: URL, next_schema: Callable[[str], None], tmp_path: Path
) -> None:
    earlier, begun = Store(database_url), tmp_path / "begun"
    os.mkfifo(begun)
    waits = f"open({str(begun)!r}, 'w').close(), open({str(begun)!r}).close()"
    next_schema(f"import os; {ADD}; os.environ.get('WAITS') and ({waits})")
    address = database_url.render_as_string(hide_password=False)
    command_line = [sys.executable, "-c", MIGRATE, str(migrate.__file__), address]
    process = subprocess.Popen(command_line, env=os.environ | {"WAITS": "1"}, stdout=subprocess.PIPE, text=True)
    begun.read_bytes()  # returns when the migration is under way
    kill(process)
    with pytest.raises(StartupError, match="this coordinator needs next"):
        earlier.check_head()  # waits until PostgreSQL has noticed, too
    earlier.close()
    run_migrate(database_url)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("fresh", [True, False])
def test_migrations_at_once_on_postgresql_take_turns(
    database_url: URL, postgres_socket: Path, next_schema: Callable[[str], None], fresh: bool
) -> None:
    url = create_database(postgres_socket, "migrated_at_once") if fresh else database_url
    next_schema(ADD)
    lock = f"{migrate.LOCK_CLASS}, {migrate.MIGRATE_LOCK}"
    waiting = text(
        "SELECT count(*) = 2 FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
    )
    holding = create_engine(url, isolation_level="AUTOCOMMIT")
    with holding.connect() as connection, ThreadPoolExecutor(2) as threads:
        connection.execute(text(f"SELECT pg_advisory_lock({lock})"))
        migrating = [threads.submit(run_migrate, url) for _ in range(2)]
        try:
            until(lambda: connection.scalar(waiting), "both wait for their turn")
        finally:
            connection.execute(text(f"SELECT pg_advisory_unlock({lock})"))
            connection.close()
            holding.dispose()
        assert [future.result() for future in migrating] == [None, None]


def test_migrations_at_once_on_sqlite_succeed_or_say_so(tmp_path: Path) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "new" / "flexlora.db"))
    processes = [command("migrate", url, tmp_path / "data") for _ in range(2)]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    refusals = ("the database is in use", "wait where it is being migrated")
    assert all(code == 0 or any(refusal in errors for refusal in refusals) for errors, code in ended), ended
    run_migrate(url)
