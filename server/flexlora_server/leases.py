"""Who aggregates a round: one worker at a time, by a lease with a fencing token, in the database's time.

A worker that was paused longer than its lease may wake up and go on; every write of its result compares the token, so it changes
nothing. (Kleppmann 2016, "How to do distributed locking", describes the token.)
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import or_, select, update

from flexlora_server.errors import LeaseLost
from flexlora_server.store import Store, Tx
from flexlora_server.tables import Round


@dataclass(frozen=True)
class Lease:
    """The right to aggregate one round; `token` grows with every lease of it."""

    round_id: int
    run: str
    number: int
    token: int


def take(tx: Tx, seconds: float) -> Lease | None:
    """Lease a round that waits for aggregation; None where none does."""
    free = or_(Round.lease_until.is_(None), Round.lease_until <= tx.now)
    wanted = select(Round).where(Round.state == "AGGREGATING", free).order_by(Round.id).limit(1)
    round_ = tx.session.scalar(wanted.with_for_update(skip_locked=True))
    if round_ is None:
        return None
    round_.lease_token += 1
    round_.lease_until = tx.now + timedelta(seconds=seconds)
    return Lease(round_.id, round_.run, round_.number, round_.lease_token)


def renew(tx: Tx, lease: Lease, seconds: float) -> None:
    """Hold on to a lease; the token is compared in the same statement.

    Raises:
        LeaseLost: another worker has it, or the round is no longer AGGREGATING.
    """
    held = update(Round).where(
        Round.id == lease.round_id, Round.lease_token == lease.token, Round.state == "AGGREGATING"
    )
    until = tx.now + timedelta(seconds=seconds)
    if tx.session.execute(held.values(lease_until=until).returning(Round.id)).first() is None:
        raise LeaseLost(f"round {lease.number} of run {lease.run} is aggregated elsewhere or was abandoned")


class Heartbeat:
    """Renews a lease in the background; `check` raises as soon as it is known to be lost."""

    def __init__(self, store: Store, lease: Lease, seconds: float) -> None:
        self._store, self._lease, self._seconds = store, lease, seconds
        self._stop = threading.Event()
        self._lost: Exception | None = None

    def check(self) -> None:
        """Raise what ended the lease."""
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(self._seconds / 3):
            try:
                with self._store.transaction() as tx:
                    renew(tx, self._lease, self._seconds)
                renewed = time.monotonic()
            except LeaseLost as lost:
                self._lost = lost
                return
            except Exception as error:  # a database that is away for a moment costs nothing while the lease lasts
                if time.monotonic() - renewed >= self._seconds:
                    self._lost = error
                    return

    @contextmanager
    def beating(self) -> Iterator["Heartbeat"]:
        """Renew as long as the block runs."""
        thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
