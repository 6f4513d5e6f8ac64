"""What an aggregation is given: the frozen inputs of a leased round, and the files that hold them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flexlora_server import engine
from flexlora_server.adapters.uploads import Accepted, weighted
from flexlora_server.leases import Lease
from flexlora_server.records import adapters, inputs, rounds, runs
from flexlora_server.settings import Settings
from flexlora_server.store import Tx
from flexlora_server.tables import Round
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate


@dataclass(frozen=True)
class Given:
    """One frozen input: its upload, the SHA-256 of its bytes, and for a late one that of the adapter it was trained from."""

    upload: str
    client: str
    sha256: str
    told: UploadCreate
    staleness: int
    base: str | None


@dataclass(frozen=True)
class Job:
    """The frozen inputs of one aggregation."""

    lease: Lease
    spec: RunSpec
    previous: str | None  # SHA-256 of the stored adapter of the round before; None in round 0
    before: str | None  # of the round before that one
    inputs: tuple[Given, ...]  # in their fixed order
    past_norms: tuple[float, ...]  # median change norms of the past rounds
    ranks: tuple[tuple[int, dict[str, int]], ...]  # the slices that participants will ask for


def read(tx: Tx, lease: Lease) -> Job:
    """The job of a leased round."""
    spec = runs.spec_of(runs.get(tx, lease.run))
    return Job(
        lease=lease,
        spec=spec,
        previous=adapters.published(tx, lease.run, lease.number - 1).sha256 if lease.number > 0 else None,
        before=adapters.published(tx, lease.run, lease.number - 2).sha256 if lease.number > 1 else None,
        inputs=tuple(_input(tx, lease, one) for one in inputs.counting(tx, tx.session.get_one(Round, lease.round_id))),
        past_norms=rounds.change_norms(tx, lease.run, lease.number),
        ranks=adapters.wanted_slices(tx, lease.run, spec.largest_rank),
    )


def _input(tx: Tx, lease: Lease, one: inputs.Frozen) -> Given:
    base = adapters.published(tx, lease.run, one.round - 1).sha256 if one.staleness else None
    told = UploadCreate.model_validate(one.upload.announced)
    return Given(one.upload.id, one.upload.client_id, one.upload.sha256, told, one.staleness, base)


def work_of(job: Job, previous: str, pin: Callable[[str], Path], settings: Settings) -> engine.Work:
    """The job on files: `pin` gives the one of a digest."""
    return engine.Work(
        spec=job.spec,
        inputs=weighted([_accepted(given, pin) for given in job.inputs]),
        previous=pin(previous),
        before=None if job.before is None else pin(job.before),
        past_norms=job.past_norms,
        threads=settings.aggregation_threads,
        device=settings.aggregation_device,
    )


def _accepted(given: Given, pin: Callable[[str], Path]) -> Accepted:
    base = None if given.base is None else pin(given.base)
    return Accepted(pin(given.sha256), given.told, given.client, given.staleness, base)
