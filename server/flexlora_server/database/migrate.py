"""Migrates the database's schema: in one transaction, while no other process uses the database, or not at all."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from flexlora_server.database.engine import migration_engine
from flexlora_server.errors import StartupError

MAX_DISCONNECT_WAIT_S = 2.0  # PostgreSQL may list the connections of processes that have just ended this long
RECHECK_EVERY_S = 0.1  # meanwhile

# The advisory locks of PostgreSQL that FlexLoRA takes: pairs of this class and one of the numbers.
LOCK_CLASS = 0x464C6F52
MIGRATE_LOCK, RESTORE_LOCK = 1, 2

# Coordinators and workers of every version keep connections of the database's own user open. Not counted: migrations that
# wait for this one, and the connection with which a restore excludes others.
_OTHER_CONNECTIONS = text(
    "SELECT coalesce(nullif(application_name, ''), 'unnamed') || coalesce(' at ' || host(client_addr), '') FROM pg_stat_activity "
    "WHERE datname = current_database() AND usename = current_user AND backend_type = 'client backend' "
    "AND pid <> pg_backend_pid() AND NOT EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = pg_stat_activity.pid "
    "AND locktype = 'advisory' AND classid = :lock_class AND objsubid = 2) ORDER BY 1"
).bindparams(lock_class=LOCK_CLASS)


def head_revision() -> str | None:
    """The newest revision of the schema."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def current_revision(connection: Connection) -> str | None:
    """The database's revision; None where it has no schema yet."""
    return MigrationContext.configure(connection).get_current_revision()


def migrate(url: URL, run: Callable[[Config, str], None] = command.upgrade, revision: str = "head") -> None:
    """Bring the database to `revision`; `run` is `upgrade` or `downgrade` of alembic's commands.

    Of several calls at once on PostgreSQL, each waits for those before it; on SQLite, they may refuse each other.

    Raises:
        StartupError: another process uses the database, or a migration failed; the database is as it was before.
    """
    engine = migration_engine(url)
    try:
        with engine.begin() as connection:
            if url.get_backend_name() == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {MIGRATE_LOCK})"))
                # another migration may have brought it there meanwhile, and coordinators may use it already
                if current_revision(connection) not in (None, head_revision() if revision == "head" else revision):
                    _refuse_others(connection)
            config = alembic_config()
            config.attributes["connection"] = connection
            run(config, revision)
    except CommandError as error:
        raise StartupError(
            f"the database is of another version of FlexLoRA, use that one or a newer one: {error}"
        ) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise _in_use_error("it is open") from error
        raise StartupError(f"the database could not be migrated, and is as it was before: {error.orig}") from error
    finally:
        engine.dispose()


def _refuse_others(connection: Connection) -> None:
    """Lock the table that starting processes read first, then check that no other connection is open.

    Raises:
        StartupError: another process uses the database.
    """
    try:
        connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE NOWAIT"))
    except OperationalError as error:
        raise _in_use_error("it is being read") from error
    end = time.monotonic() + MAX_DISCONNECT_WAIT_S
    while others := connection.scalars(_OTHER_CONNECTIONS).all():
        if time.monotonic() > end:
            raise _in_use_error(f"its user has {len(others)} other connections: {', '.join(sorted(set(others)))}")
        time.sleep(RECHECK_EVERY_S)
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))


def _in_use_error(how: str) -> StartupError:
    return StartupError(
        f"the database is in use ({how}) and was not migrated: stop every `flexlora-server serve`, `worker`, `backup` and "
        "whatever else has it open, also a pooler's idle connections, then run `flexlora-server migrate` again"
    )


def check_references(connection: Connection) -> None:
    """Check the foreign keys after a migration, during which SQLite does not enforce them.

    Raises:
        StartupError: a row refers to one that is not there.
    """
    if connection.dialect.name != "sqlite":
        return
    if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        references = ", ".join(sorted({f"{child} to {parent}" for child, _, parent, _ in broken}))
        raise StartupError(
            f"the database was not migrated, and is as it was before: {len(broken)} rows would refer to rows that are not there "
            f"(from {references}); put the database back from a backup"
        )


def alembic_config() -> Config:
    """Alembic's configuration, with the folder of the migrations: in the installed package, or at the top of a checkout."""
    installed = Path(__file__).parents[1] / "migrations"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))  # a value with % is a template
    return config
