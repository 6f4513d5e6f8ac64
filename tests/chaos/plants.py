"""Defects to inject into the product: the simulation must find each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, BinaryIO
from unittest.mock import patch

from sqlalchemy import select, update

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import inputs, rounds, uploads
from flexlora_server.database.schema import Round, Run
from flexlora_server.database.transactions import Tx
from flexlora_server.lifecycle import transitions
from flexlora_server.lifecycle.transitions import PendingTransition
from flexlora_server.state_machine import Candidate, RoundView
from flexlora_server.storage.local_uploads import LocalUploads
from flexlora_server.worker import leases
from flexlora_server.worker.leases import Lease
from flexlora_shared.messages.runs import RunSpec

Plant = Callable[[], AbstractContextManager[Any]]


@contextmanager
def no_fencing() -> Iterator[None]:
    """Whoever has ever had the lease of a round may renew it and publish."""

    def renew(tx: Tx, lease: Lease, seconds: float) -> None:
        until = tx.now + timedelta(seconds=seconds)
        tx.session.execute(update(Round).where(Round.id == lease.round_id).values(lease_until=until))

    with patch.object(leases, "renew", renew):
        yield


@contextmanager
def acknowledged_unsynced() -> Iterator[None]:
    """A part is acknowledged before its bytes are on the disk."""

    def keep(self: LocalUploads, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        file.flush()
        return file.tell(), None

    with patch.object(LocalUploads, "finish_part", keep):
        yield


@contextmanager
def swept_early() -> Iterator[None]:
    """The garbage collector takes uploads that are on their way for leftovers."""
    with patch.object(uploads, "open_ids", lambda tx: frozenset()):
        yield


@contextmanager
def unversioned() -> Iterator[None]:
    """What was found due is done, whatever the round has become since."""
    apply = transitions.apply_transition

    def anyway(tx: Tx, run: Run, found: PendingTransition) -> None:
        round_ = rounds.current(tx, run.name)
        if round_ is not None:
            apply(tx, run, replace(found, round_id=round_.id, version=round_.version))

    with patch.object(transitions, "apply_transition", anyway):
        yield


@contextmanager
def folded_twice() -> Iterator[None]:
    """A late update is an input of the round after the one that it counts in, too."""
    counting = inputs.list_counted

    def twice(tx: Tx, round_: Round) -> Sequence[inputs.FrozenInput]:
        before = select(Round).where(Round.number == round_.number - 1, Round.state == "PUBLISHED")
        late = [one for earlier in tx.session.scalars(before) for one in counting(tx, earlier) if one.staleness]
        return [*counting(tx, round_), *late]

    with patch.object(inputs, "list_counted", twice):
        yield


@contextmanager
def late_below_quorum() -> Iterator[None]:
    """An update that comes late is promised to the next round, though its own lacks its quorum and may open again."""
    in_time = machine._in_time

    def strictly(spec: RunSpec, round_: RoundView, candidate: Candidate, now: datetime) -> bool:
        return in_time(spec, replace(round_, accepted=max(round_.accepted, spec.min_updates)), candidate, now)

    with patch.object(machine, "_in_time", strictly):
        yield


PLANTS: dict[str, Plant] = {
    "no-fencing": no_fencing,
    "acknowledged-unsynced": acknowledged_unsynced,
    "unversioned": unversioned,
    "swept-early": swept_early,
    "folded-twice": folded_twice,
    "late-below-quorum": late_below_quorum,
}
