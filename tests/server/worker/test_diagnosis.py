"""What an operator is told of a failed aggregation: what the storage has lost, and which uploads to do without."""

from pathlib import Path

import pytest

from flexlora_server.database.queries import rounds
from flexlora_server.worker.diagnosis import explain_failure
from flexlora_server.worker.job import Job, read_job
from flexlora_server.worker.leases import Lease
from tests.support.databases import ON_SQLITE
from tests.support.kit import Served, encode, tensors

pytestmark = ON_SQLITE  # of files


def frozen(coordinator: Served) -> Job:
    """A round of three uploads that aggregates."""
    run = coordinator.run(min_clients=3)
    three = [coordinator.enroll() for _ in "abc"]
    for one in three:
        one.declare("run", 2)
    for seed, one in enumerate(three):
        one.upload(one.task("run"), encode(tensors(run, 2, seed=seed)))
    with coordinator.store.reading() as tx:
        round_ = rounds.latest(tx, "run", 1)
        return read_job(tx, Lease(round_.id, "run", 1, 0), coordinator.settings)


def told(coordinator: Served, job: Job) -> str:
    return explain_failure(job, coordinator.blobs, coordinator.settings, lambda: None)


def flip(path: Path) -> None:
    """One bit of the last number: still an update, but not the one that was accepted."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x40
    path.write_bytes(bytes(data))


def test_a_sound_round_has_nothing_to_tell(coordinator: Served) -> None:
    assert told(coordinator, frozen(coordinator)) == ""
    assert list((coordinator.settings.data_dir / "temporary").iterdir()) == []


def test_what_is_damaged_or_missing_is_named_in_order(coordinator: Served) -> None:
    job = frozen(coordinator)
    assert job.work is not None
    (first, one), _, (last, other) = ((update.upload_id, update.path.name) for update in job.work.inputs)
    flip(coordinator.blobs.path(one))
    coordinator.blobs.path(other).unlink()
    assert told(coordinator, job) == (
        f" Upload {first}: its file is damaged; restore the blob {one} or exclude the upload."
        f" Upload {last}: its file is missing; restore the blob {other} or exclude the upload."
    )


def test_a_damaged_adapter_is_nobodys_upload(coordinator: Served) -> None:
    job = frozen(coordinator)
    assert job.work is not None
    previous = job.work.previous.name
    flip(coordinator.blobs.path(previous))
    assert told(coordinator, job) == f" A stored adapter is damaged: restore the blob {previous}."


def test_a_storage_that_fails_is_not_explained(coordinator: Served) -> None:
    job = frozen(coordinator)
    assert job.work is not None
    path = coordinator.blobs.path(job.work.inputs[0].path.name)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        told(coordinator, job)
