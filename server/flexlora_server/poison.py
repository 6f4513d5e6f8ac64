"""Which inputs break an aggregation: asked after one has failed, so that an operator can leave them out.

Each input is looked at by itself: are its bytes still those that were accepted, and can it be aggregated alone? An input that
breaks a round only together with others is not found.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flexlora_server.adapters.inspection import inspect
from flexlora_server.adapters.slices import cut
from flexlora_server.adapters.stored import StoredAdapter
from flexlora_server.adapters.uploads import Input
from flexlora_server.engine import Work, write_aggregate
from flexlora_server.errors import Refusal
from flexlora_shared.messages.uploads import UploadCreate


@dataclass(frozen=True)
class Culprit:
    """An input that breaks the aggregation: its place among the inputs, and why, without a full stop."""

    index: int
    client_id: str
    sha256: str
    why: str


def culprits(work: Work, digests: Sequence[str], alive: Callable[[], None]) -> tuple[Culprit, ...]:
    """The inputs to blame, in the order of the inputs: damaged ones, and those that fail alone unless the round fails without.

    digests: the SHA-256 each file must have, from its row. `alive` is called between inputs and raises to stop.

    Raises:
        OSError: the storage failed, not an input; a file of the round other than an input may be missing.
    """
    damaged, failing = dict[int, str](), dict[int, str]()
    for index, (given, sha256) in enumerate(zip(work.inputs, digests, strict=True)):
        alive()
        if why := _damage(work, given, sha256):
            damaged[index] = why
        elif why := _failure(work, given, alive):
            failing[index] = why
    if failing and any(_failure(work, idle, alive) for idle in _idle(work)):
        failing = {}
    named = sorted((damaged | failing).items())
    return tuple(Culprit(index, work.inputs[index].client_id, digests[index], why) for index, why in named)


def _damage(work: Work, given: Input, sha256: str) -> str:
    """What is wrong with an input's file; "" where it is what was accepted."""
    try:
        with given.path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != sha256:
            return f"its file is damaged: it has SHA-256 {got}, not {sha256}; restore that blob or exclude the upload"
        inspect(given.path, work.spec, given.told, StoredAdapter(given.base or work.previous))
    except FileNotFoundError:
        return f"its file is missing; restore the blob {sha256} or exclude the upload"
    except Refusal as refusal:
        return f"its file would not be accepted now ({str(refusal).rstrip('.')}); exclude it"
    return ""


def _failure(work: Work, given: Input, alive: Callable[[], None]) -> str:
    """How the aggregation of this input alone fails; "" where it succeeds."""
    alone = replace(work, inputs=(replace(given, weight=1.0),))
    with tempfile.TemporaryFile() as file:
        try:
            write_aggregate(alone, file, lambda: None)
        except OSError:
            raise
        except Exception as error:  # whatever it is, it happens with this input alone
            return f"it cannot be aggregated, not even alone ({type(error).__name__}: {str(error).rstrip('.')}); exclude it"
    alive()
    return ""


def _idle(work: Work) -> Iterator[Input]:
    """Inputs nobody can be blamed for, what was served itself: where one of them fails, the cause lies elsewhere."""
    spec, rank = work.spec, work.spec.largest_rank
    with tempfile.TemporaryDirectory() as folder:
        for number, base in enumerate(dict.fromkeys((None, *(given.base for given in work.inputs)))):
            path = Path(folder) / f"idle-{number}"
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
            yield Input(path, told, 1.0, base=base)
