"""Leases: one worker at a time aggregates a round, by a lease with a fencing token, in the database's time.

A worker that was paused for longer than its lease may go on; every write of its result compares the token, so it changes
nothing. (Kleppmann 2016, "How to do distributed locking", describes the token.)
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, or_, select, update

from flexlora_server.database.queries import events, runs
from flexlora_server.database.schema import Round
from flexlora_server.database.transactions import Store, Tx
from flexlora_server.errors import LeaseLost
from flexlora_server.lifecycle import transitions

RELEASE_DELAY_S = 10.0  # until a round whose storage failed may be taken again


@dataclass(frozen=True)
class Lease:
    """The right to aggregate one round; `token` grows with every lease of it."""

    round_id: int
    run: str
    number: int
    token: int


def take(tx: Tx, seconds: float, holder: str) -> Lease | None:
    """Lease a round that waits for aggregation to `holder`, a name for people; None where none waits.

    A lease that expired is a failed attempt: a round that kills its workers, for example by its memory, must not do so for
    ever.
    """
    free = or_(Round.lease_until.is_(None), Round.lease_until <= tx.now)
    waiting = select(Round.id, Round.run).where(Round.state == "AGGREGATING", free).order_by(Round.id).limit(1)
    first = tx.session.execute(waiting).first()
    if first is None:
        return None
    run = runs.lock(tx, first.run)  # before the round's row, as everybody else does; one run a transaction
    round_ = tx.session.scalar(_select_waiting(free, first.id))
    if round_ is not None and round_.lease_holder is not None:
        transitions.record_failure(
            tx, run, round_, f"worker {round_.lease_holder} died or was cut off while it aggregated"
        )
    if round_ is None or round_.state != "AGGREGATING":  # another worker was first, or it failed too often
        return None
    return _lease(tx, round_, seconds, holder)


def _select_waiting(free: ColumnElement[bool], round_id: int) -> Select[Round]:
    """Selects the round with a lock, as it is now, if it still waits."""
    query = select(Round).where(Round.id == round_id, Round.state == "AGGREGATING", free)
    return query.with_for_update().execution_options(populate_existing=True)


def _lease(tx: Tx, round_: Round, seconds: float, holder: str) -> Lease:
    round_.lease_token += 1
    round_.lease_until, round_.lease_holder = tx.now + timedelta(seconds=seconds), holder
    return Lease(round_.id, round_.run, round_.number, round_.lease_token)


def renew(tx: Tx, lease: Lease, seconds: float) -> None:
    """Extend a lease that was not released; the token is compared in the same statement.

    Raises:
        LeaseLost: another worker has it, or the round is no longer AGGREGATING.
    """
    held = update(Round).where(
        Round.id == lease.round_id,
        Round.lease_token == lease.token,
        Round.lease_holder.is_not(None),
        Round.state == "AGGREGATING",
    )
    until = tx.now + timedelta(seconds=seconds)
    if tx.session.execute(held.values(lease_until=until).returning(Round.id)).first() is None:
        raise LeaseLost(f"round {lease.number} of run {lease.run} is aggregated elsewhere or was abandoned")


def release(tx: Tx, lease: Lease, reason: str | None) -> None:
    """Give a round back without counting an attempt.

    With a `reason`, a failure outside the round, it is not taken again for `RELEASE_DELAY_S`; other rounds may be.

    Raises:
        LeaseLost: as `renew`.
    """
    run = runs.lock(tx, lease.run)
    renew(tx, lease, 0)
    round_ = tx.session.get_one(Round, lease.round_id, populate_existing=True)
    round_.lease_until, round_.lease_holder = None, None
    if reason is not None:
        round_.reason, round_.lease_until = reason, tx.now + timedelta(seconds=RELEASE_DELAY_S)
    events.touch(tx, run)


class Heartbeat:
    """Renews a lease in a thread; `check` raises once the lease is lost."""

    def __init__(self, store: Store, lease: Lease, seconds: float) -> None:
        self._store, self._lease, self._seconds = store, lease, seconds
        self._stop = threading.Event()
        self._lost: Exception | None = None

    def check(self) -> None:
        """Raise the error that ended the lease, if any."""
        if self._lost is not None:
            raise self._lost

    def _renew_until_stopped(self) -> None:
        renewed = time.monotonic()
        while not self._stop.wait(self._seconds / 3):
            try:
                with self._store.transaction() as tx:
                    renew(tx, self._lease, self._seconds)
                renewed = time.monotonic()
            except LeaseLost as lost:
                self._lost = lost
                return
            except Exception as error:  # a short failure of the database does no harm while the lease lasts
                if time.monotonic() - renewed >= self._seconds:
                    self._lost = error
                    return

    @contextmanager
    def running(self) -> Iterator["Heartbeat"]:
        """Renew the lease while the block runs."""
        thread = threading.Thread(target=self._renew_until_stopped, name="lease-heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
