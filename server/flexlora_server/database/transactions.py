"""Opens transactions; beside `migrate`, which changes the tables, no other module does.

SQLite runs in WAL mode with `synchronous=FULL`; a writing transaction is `BEGIN IMMEDIATE`, so that racing
read-modify-writes wait instead of failing. On PostgreSQL the same code locks the run's row (`SELECT … FOR UPDATE`).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from flexlora_server.database import engine, migrate, notifications
from flexlora_server.errors import StartupError

# All queries of a reading transaction see one state: by SQLite's snapshots, by PostgreSQL's REPEATABLE READ.
_READ_OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {"flexlora_read_only": True},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}


@dataclass
class Tx:
    """An open transaction: its session, the database's time, and whether it changes what others wait for (runs, keys)."""

    session: Session
    now: datetime
    changed: bool = False


class Store:
    """The database: its connections, and the transactions on them.

    `clock` gives seconds since the epoch; None takes the database's own time, which every process agrees on.
    """

    def __init__(self, url: URL, clock: Callable[[], float] | None = None) -> None:
        if url.get_backend_name() not in _READ_OPTIONS:
            raise StartupError(f"the database must be SQLite or PostgreSQL, not {url.get_backend_name()}")
        self.url = url
        self._clock = clock
        self._engine = engine.pooled_engine(url)
        self._read_engine = self._engine.execution_options(**_READ_OPTIONS[url.get_backend_name()])
        # SQLite has one writer: threads queue for this lock, instead of polling the file's lock
        self._write_lock = nullcontext() if self.notifies else threading.Lock()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def notifies(self) -> bool:
        """Whether other processes are notified of changes (`notifications.listen`); without, they poll."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """Read and write: everything is committed on leaving, or nothing."""
        with self._write_lock, Session(self._engine, expire_on_commit=False) as session, session.begin():
            tx = Tx(session, self._now(session))
            yield tx
            if tx.changed and self.notifies:
                notifications.notify(session)
        if tx.changed:
            self.on_change()

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        """Read one consistent state, never waiting for a writer."""
        with Session(self._read_engine, expire_on_commit=False) as session, session.begin():
            yield Tx(session, self._now(session))

    def _now(self, session: Session) -> datetime:
        if self._clock is None and self.url.get_backend_name() == "postgresql":
            now = session.scalar(select(func.clock_timestamp()))
            assert isinstance(now, datetime)
            return now
        return datetime.fromtimestamp((self._clock or time.time)(), UTC)

    def migrate(self) -> None:
        """Bring the database to the newest schema; one that has it already may be in use.

        Raises:
            StartupError: it cannot be reached, another process uses it, or a migration failed; it is as it was before.
        """
        if self.url.get_backend_name() == "sqlite":
            if self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            if (
                self._revision() == migrate.head_revision()
            ):  # else it is needed exclusively, even to see that nothing is to do
                return
        self.close()  # or it would be in use by this very process
        migrate.migrate(self.url)

    def check_head(self) -> None:
        """Refuse a database of another schema.

        Raises:
            StartupError: it cannot be reached, or is not at head; the message says what to run.
        """
        revision, head = self._revision(), migrate.head_revision()
        if revision != head:
            raise StartupError(
                f"the database is at schema {revision or 'none'}, this coordinator needs {head}; run `flexlora-server migrate`"
            )

    def _revision(self) -> str | None:
        try:
            with self._read_engine.begin() as connection:
                return migrate.current_revision(connection)
        except OperationalError as error:
            address = self.url.render_as_string(hide_password=True)
            raise StartupError(
                f"the database {address} cannot be opened ({error.orig}); wait where it is being migrated, else check it, "
                "then run `flexlora-server migrate`"
            ) from error

    def close(self) -> None:
        """Close the connections of the pool."""
        self._engine.dispose()
