"""Why an aggregation failed: blobs that are missing or damaged, and the inputs that break it.

Each input is checked by itself: would it be accepted now, and can it be aggregated alone? An input that breaks a round only
together with others is not found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.adapter_files.inspect_upload import check_upload
from flexlora_server.adapter_files.round_uploads import InputUpdate
from flexlora_server.adapter_files.slicing import write_slice
from flexlora_server.errors import LeaseLost, Refusal, Stopping
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, DamagedBlob
from flexlora_server.worker.aggregate_module import RoundWork
from flexlora_server.worker.aggregate_round import write_aggregate
from flexlora_server.worker.job import Job
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import capped_pattern


def explain_failure(job: Job, blobs: BlobStore, settings: Settings, check_alive: Callable[[], None]) -> str:
    """Sentences to append to the reason of the failure, "" where nothing is found. `check_alive` raises to stop.

    Raises:
        OSError: the storage cannot be read.
    """
    if job.work is None:
        if job.start is not None and (fault := _fault(blobs, job.start)):
            return f" The adapter that the run starts from {fault}: restore the blob {job.start}."
        return ""
    faults = "".join(f" {fault}." for fault in _storage_faults(job.work, blobs, check_alive))
    return faults or _input_faults(job.work, blobs, settings, check_alive)


def _storage_faults(work: RoundWork, blobs: BlobStore, check_alive: Callable[[], None]) -> Iterator[str]:
    """Blobs of the round that are missing or damaged in the storage; damaged local copies are replaced on the way."""
    for update in work.inputs:
        check_alive()
        if fault := _fault(blobs, update.path.name):
            yield f"Upload {update.upload_id}: its file {fault}; restore the blob {update.path.name} or exclude the upload"
    stored = {work.previous, work.before, *(update.base for update in work.inputs)}
    for sha256 in sorted(path.name for path in stored if path is not None):
        check_alive()
        if fault := _fault(blobs, sha256):
            yield f"A stored adapter {fault}: restore the blob {sha256}"


def _fault(blobs: BlobStore, sha256: str) -> str:
    try:
        blobs.verified_path(sha256)
    except FileNotFoundError:
        return "is missing"
    except DamagedBlob:
        return "is damaged"
    return ""


def _input_faults(work: RoundWork, blobs: BlobStore, settings: Settings, check_alive: Callable[[], None]) -> str:
    """The uploads that cannot be aggregated, though their bytes are those that were accepted."""
    trials = TemporaryDirectory(dir=settings.data_dir / "temporary", prefix="trials-")
    with blobs.pinned() as pin, trials as folder:
        pinned = work.with_paths(lambda path: pin(path.name))
        faulty = find_faulty_inputs(pinned, check_alive, Path(folder))
    return "".join(f" Upload {work.inputs[one.index].upload_id}: {one.reason}." for one in faulty)


@dataclass(frozen=True)
class FaultyInput:
    """An input that breaks the aggregation: its index among the inputs, and the reason, without a full stop."""

    index: int
    reason: str


def find_faulty_inputs(work: RoundWork, check_alive: Callable[[], None], folder: Path) -> tuple[FaultyInput, ...]:
    """The faulty inputs in order: those that would be refused now, and those whose aggregation alone fails.

    The latter are reported only where the aggregation of unchanged slices succeeds: otherwise the cause is not an input. The
    files are those that were accepted. `check_alive` raises to stop; trials are written to `folder`.

    Raises:
        OSError: the storage failed, not an input.
    """
    refused, failing = dict[int, str](), dict[int, str]()
    for index, update in enumerate(work.inputs):
        check_alive()
        if reason := _refusal(work, update):
            refused[index] = reason
        elif reason := _failure(work, update, check_alive, folder):
            failing[index] = reason
    if failing and any(_failure(work, unchanged, check_alive, folder) for unchanged in _unchanged_inputs(work, folder)):
        failing = {}
    return tuple(FaultyInput(index, reason) for index, reason in sorted((refused | failing).items()))


def _refusal(work: RoundWork, update: InputUpdate) -> str:
    """Why an input would not be accepted now; "" where it would."""
    try:
        check_upload(update.path, work.spec, update.announced, NumpyGlobalAdapter(update.base or work.previous))
    except Refusal as refusal:
        return f"it would not be accepted now ({str(refusal).rstrip('.')}); exclude it"
    return ""


def _failure(work: RoundWork, update: InputUpdate, check_alive: Callable[[], None], folder: Path) -> str:
    """How the aggregation of this input alone fails; "" where it succeeds."""
    alone = replace(work, inputs=(replace(update, weight=1.0),))
    with (folder / "trial").open("w+b") as file:
        try:
            write_aggregate(alone, file, check_alive)
        except (OSError, SQLAlchemyError, LeaseLost, Stopping):  # of `check_alive`, or of the storage
            raise
        except Exception as error:  # any other failure is that of this input alone
            return f"it cannot be aggregated, not even alone ({type(error).__name__}: {str(error).rstrip('.')}); exclude it"
    return ""


def _unchanged_inputs(work: RoundWork, folder: Path) -> Iterator[InputUpdate]:
    """The served slices themselves as inputs: where the aggregation of one fails, no upload is the cause."""
    spec, rank = work.spec, work.spec.largest_rank
    pattern = capped_pattern(spec.modules, rank, {})
    for number, base in enumerate(dict.fromkeys((None, *(update.base for update in work.inputs)))):
        path = folder / f"idle-{number}"
        with path.open("w+b") as file:
            write_slice(base or work.previous, spec, rank, {}, file)
        announced = UploadCreate(
            rank=rank,
            alpha=spec.scaling.alpha_of(rank),
            alpha_pattern={key: spec.scaling.alpha_of(own) for key, own in pattern.items()},
            use_rslora=spec.scaling.use_rslora,
            examples=1,
            size=path.stat().st_size,
            sha256="0" * 64,
        )
        yield InputUpdate(path, announced, base=base)
