"""Reads the job of a leased round from the database: its frozen inputs, and the blobs that hold them."""

from dataclasses import dataclass
from pathlib import Path

from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.adapter_files.weights import WeightRule
from flexlora_server.database.queries import adapters, inputs, rounds, runs
from flexlora_server.database.schema import Round
from flexlora_server.database.transactions import Tx
from flexlora_server.settings import Settings
from flexlora_server.worker.aggregate_module import RoundWork
from flexlora_server.worker.leases import Lease
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate


@dataclass(frozen=True)
class Job:
    """One aggregation under its lease.

    work: None in round 0, which has no inputs; its paths are bare SHA-256 names: see `RoundWork.with_paths`.
    start: SHA-256 of the global update that round 0 begins with, where the run starts from one.
    slices: (rank, pattern) of the slices that participants will ask for.
    """

    lease: Lease
    spec: RunSpec
    work: RoundWork | None
    start: str | None
    slices: tuple[tuple[int, dict[str, int]], ...]


def read_job(tx: Tx, lease: Lease, settings: Settings) -> Job:
    """The job of a leased round; round 0 has no inputs."""
    spec = runs.spec_of(runs.get(tx, lease.run))
    work = _work(tx, lease, spec, settings) if lease.number > 0 else None
    start = spec.start_from.sha256 if spec.start_from is not None and work is None else None
    return Job(lease, spec, work, start, adapters.expected_slices(tx, lease.run, spec.largest_rank))


def _work(tx: Tx, lease: Lease, spec: RunSpec, settings: Settings) -> RoundWork:
    frozen = inputs.list_counted(tx, tx.session.get_one(Round, lease.round_id))
    before = adapters.before(tx, lease.run, lease.number)
    return RoundWork(
        spec=spec,
        inputs=with_weights([_input(tx, lease, row) for row in frozen], WeightRule.of(spec)),
        previous=_published(tx, lease.run, lease.number - 1),
        before=None if before is None else Path(before),
        past_norms=rounds.change_norms(tx, lease.run, lease.number),
        threads=settings.aggregation_threads,
        device=settings.aggregation_device,
    )


def _input(tx: Tx, lease: Lease, row: inputs.FrozenInput) -> InputUpdate:
    return InputUpdate(
        path=Path(row.upload.sha256),
        announced=UploadCreate.model_validate(row.upload.announced),
        client_id=row.upload.client_id,
        staleness=row.staleness,
        base=_published(tx, lease.run, row.round - 1) if row.staleness else None,
        upload_id=row.upload.id,
    )


def _published(tx: Tx, run: str, number: int) -> Path:
    return Path(adapters.get_published(tx, run, number).sha256)
