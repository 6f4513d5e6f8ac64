"""Makes the connections to the database, and bounds how long one may keep its caller waiting.

A database that hangs sends no answer while its machine still acknowledges packets: only a timeout on this side ends that wait.
"""

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.pool import ConnectionPoolEntry

CONNECT_TIMEOUT_S = 5  # to connect to PostgreSQL
STATEMENT_TIMEOUT_S = 10.0  # after which PostgreSQL cancels a statement, waits for locks included
ANSWER_TIMEOUT_S = 12.0  # without an answer, after which a connection is closed
POOL_TIMEOUT_S = 10.0  # for a connection of the pool to become free
SQLITE_BUSY_TIMEOUT_S = 30.0  # that SQLite waits for a lock of another process
SQLITE_EXCLUSIVE_TIMEOUT_S = 2.0  # the same for a migration, which needs the file to itself
# a peer that vanished is noticed within about 20 seconds; without effect on Unix sockets
KEEPALIVE_OPTIONS = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3}
KEEPALIVE_OPTIONS |= {"tcp_user_timeout": 20_000, "connect_timeout": CONNECT_TIMEOUT_S}
POOL_OPTIONS: dict[str, Any] = {
    "pool_size": 10,
    "max_overflow": 30,
    "pool_timeout": POOL_TIMEOUT_S,
    "pool_use_lifo": True,
}

_RV = TypeVar("_RV")


def pooled_engine(url: URL) -> Engine:
    """A pool of connections with bounded statement times."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, SQLITE_BUSY_TIMEOUT_S, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
    connect_args = _connect_args(
        f"-c statement_timeout={STATEMENT_TIMEOUT_S:g}s {url.query.get('options', '')}".strip()
    )
    engine = create_engine(url, **POOL_OPTIONS, pool_pre_ping=True, connect_args=connect_args)
    event.listen(engine, "do_connect", _connect_bounded)
    return engine


def migration_engine(url: URL) -> Engine:
    """An engine for changing the schema: without timeouts, since a large table takes long.

    A SQLite file is locked exclusively: "database is locked" where another process has it open. Foreign keys are not enforced:
    tables that others refer to are dropped and recreated, and the pragma cannot be changed within a transaction.
    """
    if url.get_backend_name() == "sqlite":
        pragmas = ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=OFF")
        return _sqlite(url, SQLITE_EXCLUSIVE_TIMEOUT_S, *pragmas)
    return create_engine(url, connect_args=_connect_args())


def _connect_args(options: str | None = None) -> dict[str, Any]:
    args: dict[str, Any] = {"client_encoding": "utf8", **KEEPALIVE_OPTIONS}  # whatever the database's own encoding is
    args["fallback_application_name"] = "flexlora-server"
    return args if options is None else args | {"options": options}


def _sqlite(url: URL, busy_timeout: float, *pragmas: str) -> Engine:
    def set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver opens no transactions of its own
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={busy_timeout * 1000:.0f}", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    engine = create_engine(url, **POOL_OPTIONS, connect_args={"timeout": busy_timeout})
    event.listen(engine, "connect", set_pragmas)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


class _BoundedConnection(psycopg.Connection[Any]):
    """A connection that closes itself when an answer does not come within `ANSWER_TIMEOUT_S`."""

    def wait(self, gen: PQGen[_RV], interval: float = 0.1, timeout: float | None = None) -> _RV:
        """psycopg's own wait, with a timeout."""
        try:
            return super().wait(gen, interval, ANSWER_TIMEOUT_S if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.close()  # the answer may still come, and would be taken for that of the next statement
            raise


def _connect_bounded(
    dialect: Dialect, record: ConnectionPoolEntry, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> _BoundedConnection:
    return _BoundedConnection.connect(*args, **kwargs)


def _sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("flexlora_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
