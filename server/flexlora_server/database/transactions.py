"""The only file that opens a transaction, beside `schema`, which changes the tables.

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

from flexlora_server.database import engine, notifications
from flexlora_server.database import migrate as schema
from flexlora_server.errors import StartupError

# One consistent state for all that a reading transaction asks: SQLite's snapshots, PostgreSQL's REPEATABLE READ.
_READING: dict[str, dict[str, Any]] = {
    "sqlite": {"flexlora_read_only": True},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}


@dataclass
class Tx:
    """An open transaction: its session, the database's time, and whether it changes what others wait for: runs, keys."""

    session: Session
    now: datetime
    changed: bool = False


class Store:
    """The door to the database.

    `clock` gives seconds since the epoch; None takes the database's own time, which every process agrees on.
    """

    def __init__(self, url: URL, clock: Callable[[], float] | None = None) -> None:
        if url.get_backend_name() not in _READING:
            raise StartupError(f"the database must be SQLite or PostgreSQL, not {url.get_backend_name()}")
        self.url = url
        self._clock = clock
        self._writing = engine.engine(url)
        self._reading = self._writing.execution_options(**_READING[url.get_backend_name()])
        # SQLite has one writer: threads queue up here, instead of asking its file again and again whether it is free
        self._turn = nullcontext() if self.notifies else threading.Lock()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def notifies(self) -> bool:
        """Whether other processes are told of changes (`notices.hear`); where not, they look now and then."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """Read and write: all of it is committed on leaving, or nothing."""
        with self._turn, Session(self._writing, expire_on_commit=False) as session, session.begin():
            tx = Tx(session, self._now(session))
            yield tx
            if tx.changed and self.notifies:
                notifications.send(session)
        if tx.changed:
            self.on_change()

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        """Read one consistent state, never waiting for a writer."""
        with Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield Tx(session, self._now(session))

    def _now(self, session: Session) -> datetime:
        if self._clock is None and self.url.get_backend_name() == "postgresql":
            now = session.scalar(select(func.clock_timestamp()))
            assert isinstance(now, datetime)
            return now
        return datetime.fromtimestamp((self._clock or time.time)(), UTC)

    def migrate(self) -> None:
        """Bring the database to the newest schema; one that is there already may be in use.

        Raises:
            StartupError: another process uses the database, or a migration failed; the database is as it was before.
        """
        if self.url.database and self.url.get_backend_name() == "sqlite":
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        with self._reading.begin() as connection:
            found = schema.current(connection)
        if found != schema.head():
            self.close()  # or it would be in use by this very process
            schema.change(self.url)

    def check_head(self) -> None:
        """Refuse a database of another schema.

        Raises:
            StartupError: it cannot be reached, or is not at head; the message says what to run.
        """
        try:
            with self._reading.begin() as connection:
                found = schema.current(connection)
        except OperationalError as error:
            shown = self.url.render_as_string(hide_password=True)
            raise StartupError(
                f"the database {shown} cannot be opened ({error.orig}); wait where it is being migrated, else check it, "
                "then run `flexlora-server migrate`"
            ) from error
        head = schema.head()
        if found != head:
            raise StartupError(
                f"the database is at schema {found or 'none'}, this coordinator needs {head}; run `flexlora-server migrate`"
            )

    def close(self) -> None:
        """Give the connections back."""
        self._writing.dispose()
