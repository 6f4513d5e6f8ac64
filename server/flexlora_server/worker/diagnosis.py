"""Why an aggregation failed, for the operator: what the storage has lost or damaged, and the uploads that break it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, Damaged
from flexlora_server.worker.aggregate_module import Work
from flexlora_server.worker.job import Job
from flexlora_server.worker.poison import culprits


def explain(job: Job, blobs: BlobStore, settings: Settings, alive: Callable[[], None]) -> str:
    """Sentences to add to the failure's own reason, "" where nothing is found. `alive` raises to stop.

    Raises:
        OSError: the storage cannot be read.
    """
    if job.work is None:
        return ""
    lost = "".join(f" {fault}." for fault in _lost(job.work, blobs, alive))
    return lost or _breaking(job.work, blobs, settings, alive)


def _lost(work: Work, blobs: BlobStore, alive: Callable[[], None]) -> Iterator[str]:
    """Blobs of the round that are missing or damaged in the storage; damaged local copies are replaced on the way."""
    for update in work.inputs:
        alive()
        if fault := _fault(blobs, update.path.name):
            yield f"Upload {update.upload_id}: its file {fault}; restore the blob {update.path.name} or exclude the upload"
    stored = {work.previous, work.before, *(update.base for update in work.inputs)}
    for sha256 in sorted(path.name for path in stored if path is not None):
        alive()
        if fault := _fault(blobs, sha256):
            yield f"A stored adapter {fault}: restore the blob {sha256}"


def _fault(blobs: BlobStore, sha256: str) -> str:
    try:
        blobs.whole(sha256)
    except FileNotFoundError:
        return "is missing"
    except Damaged:
        return "is damaged"
    return ""


def _breaking(work: Work, blobs: BlobStore, settings: Settings, alive: Callable[[], None]) -> str:
    """The uploads that cannot be aggregated, though their bytes are those that were accepted."""
    trials = TemporaryDirectory(dir=settings.data_dir / "temporary", prefix="trials-")
    with blobs.pinned() as pin, trials as folder:
        located = work.located(lambda path: pin(path.name))
        found = culprits(located, alive, Path(folder))
    return "".join(f" Upload {work.inputs[culprit.index].upload_id}: {culprit.why}." for culprit in found)
