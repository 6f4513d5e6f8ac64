"""Which inputs break an aggregation: asked after one has failed, so that an operator can leave them out.

Each input is looked at by itself: would it be accepted now, and can it be aggregated alone? An input that breaks a round only
together with others is not found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.adapter_files.global_adapter_numpy import StoredRows
from flexlora_server.adapter_files.inspect_upload import inspect
from flexlora_server.adapter_files.round_uploads import InputUpdate
from flexlora_server.adapter_files.slicing import cut
from flexlora_server.errors import LeaseLost, Refusal, Stopping
from flexlora_server.worker.aggregate_round import Work, write_aggregate
from flexlora_shared.messages.uploads import UploadCreate


@dataclass(frozen=True)
class Culprit:
    """An input that breaks the aggregation: its place among the inputs, and why, without a full stop."""

    index: int
    why: str


def culprits(work: Work, alive: Callable[[], None], folder: Path) -> tuple[Culprit, ...]:
    """The inputs to blame, in order: those not acceptable any more, and those that fail alone unless the round fails without.

    The files are those that were accepted. `alive` raises to stop; trials are written to `folder`.

    Raises:
        OSError: the storage failed, not an input.
    """
    refused, failing = dict[int, str](), dict[int, str]()
    for index, given in enumerate(work.inputs):
        alive()
        if why := _refusal(work, given):
            refused[index] = why
        elif why := _failure(work, given, alive, folder):
            failing[index] = why
    if failing and any(_failure(work, idle, alive, folder) for idle in _idle(work, folder)):
        failing = {}
    return tuple(Culprit(index, why) for index, why in sorted((refused | failing).items()))


def _refusal(work: Work, given: InputUpdate) -> str:
    """Why an input would not be accepted now; "" where it would."""
    try:
        inspect(given.path, work.spec, given.announced, StoredRows(given.base or work.previous))
    except Refusal as refusal:
        return f"it would not be accepted now ({str(refusal).rstrip('.')}); exclude it"
    return ""


def _failure(work: Work, given: InputUpdate, alive: Callable[[], None], folder: Path) -> str:
    """How the aggregation of this input alone fails; "" where it succeeds."""
    alone = replace(work, inputs=(replace(given, weight=1.0),))
    with (folder / "trial").open("w+b") as file:
        try:
            write_aggregate(alone, file, alive)
        except (OSError, SQLAlchemyError, LeaseLost, Stopping):  # of `alive`, or of the place
            raise
        except Exception as error:  # whatever it is, it happens with this input alone
            return f"it cannot be aggregated, not even alone ({type(error).__name__}: {str(error).rstrip('.')}); exclude it"
    return ""


def _idle(work: Work, folder: Path) -> Iterator[InputUpdate]:
    """Inputs nobody can be blamed for, what was served itself: where one of them fails, the cause lies elsewhere."""
    spec, rank = work.spec, work.spec.largest_rank
    for number, base in enumerate(dict.fromkeys((None, *(given.base for given in work.inputs)))):
        path = folder / f"idle-{number}"
        with path.open("w+b") as file:
            cut(base or work.previous, spec, rank, {}, file)
        told = UploadCreate(
            rank=rank,
            alpha=spec.scaling.alpha_of(rank),
            use_rslora=spec.scaling.use_rslora,
            examples=1,
            size=path.stat().st_size,
            sha256="0" * 64,
        )
        yield InputUpdate(path, told, base=base)
