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

from sqlalchemy import ColumnElement, Select, or_, select, update

from flexlora_server.database.queries import events, runs
from flexlora_server.database.schema import Round
from flexlora_server.database.transactions import Store, Tx
from flexlora_server.errors import LeaseLost
from flexlora_server.lifecycle import transitions

BACK_OFF = 10.0  # seconds until a round that was given back for its storage's sake may be taken again


@dataclass(frozen=True)
class Lease:
    """The right to aggregate one round; `token` grows with every lease of it."""

    round_id: int
    run: str
    number: int
    token: int


def take(tx: Tx, seconds: float, holder: str) -> Lease | None:
    """Lease a round that waits for aggregation to `holder`, a name for people; None where none does.

    A lease that ended without a word is a failed attempt: a round that kills its worker, by the memory it takes say, must not
    do so for ever.
    """
    free = or_(Round.lease_until.is_(None), Round.lease_until <= tx.now)
    waiting = select(Round.id, Round.run).where(Round.state == "AGGREGATING", free).order_by(Round.id).limit(1)
    first = tx.session.execute(waiting).first()
    if first is None:
        return None
    run = runs.lock(tx, first.run)  # before the round's row, as everybody else does; one run a transaction
    round_ = tx.session.scalar(_if_it_waits(free, first.id))
    if round_ is not None and round_.lease_holder is not None:
        transitions.failed(tx, run, round_, f"worker {round_.lease_holder} died or was cut off while it aggregated")
    if round_ is None or round_.state != "AGGREGATING":  # another worker was first, or it failed too often
        return None
    return _lease(tx, round_, seconds, holder)


def _if_it_waits(free: ColumnElement[bool], round_id: int) -> Select[Round]:
    """The round, as it is now, where it still waits."""
    wanted = select(Round).where(Round.id == round_id, Round.state == "AGGREGATING", free)
    return wanted.with_for_update().execution_options(populate_existing=True)


def _lease(tx: Tx, round_: Round, seconds: float, holder: str) -> Lease:
    round_.lease_token += 1
    round_.lease_until, round_.lease_holder = tx.now + timedelta(seconds=seconds), holder
    return Lease(round_.id, round_.run, round_.number, round_.lease_token)


def renew(tx: Tx, lease: Lease, seconds: float) -> None:
    """Hold on to a lease that was not given back; the token is compared in the same statement.

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


def release(tx: Tx, lease: Lease, why: str | None) -> None:
    """Give a round back without counting an attempt.

    Where something went wrong (`why`) it is not taken again for a while: its storage may be what fails, and other runs' is not.

    Raises:
        LeaseLost: as `renew`.
    """
    run = runs.lock(tx, lease.run)
    renew(tx, lease, 0)
    round_ = tx.session.get_one(Round, lease.round_id, populate_existing=True)
    round_.lease_until, round_.lease_holder = None, None
    if why is not None:
        round_.reason, round_.lease_until = why, tx.now + timedelta(seconds=BACK_OFF)
    events.touch(tx, run)


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
