"""Why an aggregation failed, for the operator: what the storage has lost or damaged, and the uploads that break it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from flexlora_server.blobs import BlobStore, Damaged
from flexlora_server.jobs import Job, work_of
from flexlora_server.poison import culprits
from flexlora_server.settings import Settings


def explain(job: Job, blobs: BlobStore, settings: Settings, alive: Callable[[], None]) -> str:
    """Sentences to add to the failure's own reason, "" where nothing is found. `alive` raises to stop.

    Raises:
        OSError: the storage cannot be read.
    """
    if job.previous is None:
        return ""
    return "".join(f" {found}." for found in _lost(job, blobs, alive)) or _breaking(
        job, job.previous, blobs, settings, alive
    )


def _lost(job: Job, blobs: BlobStore, alive: Callable[[], None]) -> Iterator[str]:
    """Blobs of the round that are missing or damaged in the storage; damaged local copies are replaced on the way."""
    for given in job.inputs:
        alive()
        if fault := _fault(blobs, given.sha256):
            yield f"Upload {given.upload}: its file {fault}; restore the blob {given.sha256} or exclude the upload"
    for sha256 in sorted({job.previous, job.before, *(given.base for given in job.inputs)} - {None}, key=str):
        alive()
        if sha256 is not None and (fault := _fault(blobs, sha256)):
            yield f"A stored adapter {fault}: restore the blob {sha256}"


def _fault(blobs: BlobStore, sha256: str) -> str:
    try:
        blobs.whole(sha256)
    except FileNotFoundError:
        return "is missing"
    except Damaged:
        return "is damaged"
    return ""


def _breaking(job: Job, previous: str, blobs: BlobStore, settings: Settings, alive: Callable[[], None]) -> str:
    """The uploads that cannot be aggregated, though their bytes are those that were accepted."""
    trials = TemporaryDirectory(dir=settings.data_dir / "temporary", prefix="trials-")
    with blobs.pinned() as pin, trials as folder:
        found = culprits(work_of(job, previous, pin, settings), alive, Path(folder))
    return "".join(f" Upload {job.inputs[one.index].upload}: {one.why}." for one in found)
