"""Changes the database's schema: alone at the database, in one transaction, or not at all."""

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

from flexlora_server.database import engine as connections
from flexlora_server.errors import StartupError

PATIENCE = 2.0  # seconds that PostgreSQL may still list the connections of processes that have just ended
LOOK = 0.1  # seconds between looks

# Whoever serves or works keeps connections of the database's own user open, of whatever version it is.
_OTHERS = text(
    "SELECT coalesce(nullif(application_name, ''), 'unnamed') || coalesce(' at ' || host(client_addr), '') FROM pg_stat_activity "
    "WHERE datname = current_database() AND usename = current_user AND backend_type = 'client backend' "
    "AND pid <> pg_backend_pid() ORDER BY 1"
)


def head() -> str | None:
    """The newest schema."""
    return ScriptDirectory.from_config(configuration()).get_current_head()


def current(connection: Connection) -> str | None:
    """The database's schema; None where there is none yet."""
    return MigrationContext.configure(connection).get_current_revision()


def change(url: URL, how: Callable[[Config, str], None] = command.upgrade, to: str = "head") -> None:
    """Bring the database to the schema `to`, with `how` one of alembic's commands.

    Raises:
        StartupError: another process uses the database, or a migration failed; the database is as it was before.
    """
    engine = connections.changing(url)
    try:
        with engine.begin() as connection:
            if url.get_backend_name() == "postgresql" and current(connection) is not None:
                _refuse_others(connection)
            config = configuration()
            config.attributes["connection"] = connection
            how(config, to)
    except CommandError as error:
        raise StartupError(
            f"the database is of another version of FlexLoRA, use that one or a newer one: {error}"
        ) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise _in_use("it is open") from error
        raise StartupError(f"the database could not be migrated, and is as it was before: {error.orig}") from error
    finally:
        engine.dispose()


def _refuse_others(connection: Connection) -> None:
    """Keep those out that start now, they read this table first; then look who is there already."""
    try:
        connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE NOWAIT"))
    except OperationalError as error:
        raise _in_use("it is being read") from error
    end = time.monotonic() + PATIENCE
    while others := connection.scalars(_OTHERS).all():
        if time.monotonic() > end:
            raise _in_use(f"its user has {len(others)} other connections: {', '.join(sorted(set(others)))}")
        time.sleep(LOOK)
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))


def _in_use(how: str) -> StartupError:
    return StartupError(
        f"the database is in use ({how}) and was not migrated: stop every `flexlora-server serve`, `worker`, `backup` and "
        "whatever else has it open, then run `flexlora-server migrate` again"
    )


def check_references(connection: Connection) -> None:
    """Look for rows that refer to none, at the end of a change: SQLite does not enforce foreign keys meanwhile.

    Raises:
        StartupError: there are such.
    """
    if connection.dialect.name != "sqlite":
        return
    if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        found = ", ".join(sorted({f"{child} to {parent}" for child, _, parent, _ in broken}))
        raise StartupError(
            f"the database was not migrated, and is as it was before: {len(broken)} rows would refer to rows that are not there "
            f"(from {found}); put the database back from a backup"
        )


def configuration() -> Config:
    """Alembic's, with the folder of the migrations: within the installed package, or at the top of a checkout."""
    installed = Path(__file__).parents[1] / "migrations"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))  # a value with % is a template
    return config
