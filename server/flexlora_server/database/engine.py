"""How connections to the database are made, and how long one may keep its caller waiting.

A database that hangs answers nothing, while its machine still acknowledges what is sent: only a bound on this side ends that
wait.
"""

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.pool import ConnectionPoolEntry

CONNECT = 5  # seconds for a connection to PostgreSQL
STATEMENT = 10.0  # seconds after which PostgreSQL ends a statement, waits for locks included
ANSWER = 12.0  # seconds without an answer after which a connection is given up
FREE = 10.0  # seconds for a connection of the pool to become free
BUSY = 30.0  # seconds that SQLite waits for another process that writes
ALONE = 2.0  # seconds that whoever wants a SQLite file for itself waits for others to close it
# a peer that vanished is noticed within about 20 seconds; without effect on Unix sockets
KEEPALIVE = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3}
KEEPALIVE |= {"tcp_user_timeout": 20_000, "connect_timeout": CONNECT}
POOL: dict[str, Any] = {"pool_size": 10, "max_overflow": 30, "pool_timeout": FREE, "pool_use_lifo": True}

_RV = TypeVar("_RV")


def engine(url: URL) -> Engine:
    """The pool of connections; each bounds the time that a statement takes."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, BUSY, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
    told = _told(f"-c statement_timeout={STATEMENT:g}s {url.query.get('options', '')}".strip())
    made = create_engine(url, **POOL, pool_pre_ping=True, connect_args=told)
    event.listen(made, "do_connect", _bounded)
    return made


def changing(url: URL) -> Engine:
    """For a change of the schema: no bounds, as a large table takes its time.

    A SQLite file belongs to this connection alone, "database is locked" where anybody has it open. Foreign keys are not
    enforced: tables that others refer to are dropped and made anew, and within a transaction that cannot be switched.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, ALONE, "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=OFF")
    return create_engine(url, connect_args=_told())


def _told(options: str | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {"client_encoding": "utf8", **KEEPALIVE}  # whatever the database's own encoding is
    told["fallback_application_name"] = "flexlora-server"
    return told if options is None else told | {"options": options}


def _sqlite(url: URL, patience: float, *pragmas: str) -> Engine:
    def connected(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver opens no transactions of its own
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={patience * 1000:.0f}", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    made = create_engine(url, **POOL, connect_args={"timeout": patience})
    event.listen(made, "connect", connected)
    event.listen(made, "begin", _sqlite_begin)
    return made


class _Bounded(psycopg.Connection[Any]):
    """A connection that is given up when an answer does not come."""

    def wait(self, gen: PQGen[_RV], interval: float = 0.1, timeout: float | None = None) -> _RV:
        """psycopg's own wait, with an end."""
        try:
            return super().wait(gen, interval, ANSWER if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.close()  # the answer may still come, and would be taken for that of the next statement
            raise


def _bounded(dialect: Dialect, record: ConnectionPoolEntry, args: tuple[Any, ...], told: dict[str, Any]) -> _Bounded:
    return _Bounded.connect(*args, **told)


def _sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("flexlora_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
