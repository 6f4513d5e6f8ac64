"""The work folder of one run: cached slices, the trained update until its receipt, and `state.json`.

`state.json` is replaced as a whole after the update is on disk, so an agent that dies between training and receipt
sends that update after a restart; one that dies while training goes on from its last checkpoint, which is removed when
the update is recorded. The optimizer's state stays from round to round.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from flexlora_client.agent.agreement import Ranks
from flexlora_client.agent.results import Results
from flexlora_client.agent.slice_cache import SliceCache
from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, sha256_of, sync_file, write_whole
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.store import digest_of
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_shared.messages.base import Message, RunName, Sha256
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.messages.uploads import UploadCreate


class TrainedUpdate(Message):
    """A trained update that has no receipt yet: what it was trained from and how it is announced."""

    run: RunName
    basis: str = ""  # who trained it on which examples; see `compute_basis`
    round: int
    attempt: int
    adapter: Sha256  # of the slice it started from
    file: str  # name inside the output folder
    own: str = (
        ""  # its own adapter's folder inside it, where that holds parts that the file does not; "": the file's folder
    )
    upload: UploadCreate
    sample: int = 0  # held-out examples that its own loss is over


class EvaluatedSample(Message):
    """`SampleSize` of the last reported evaluation."""

    examples: int
    choices: int
    answers: int


class WorkState(Message):
    """Content of `state.json`."""

    evaluated: Sha256 | None = None  # the last slice whose evaluation was reported
    sample: EvaluatedSample | None = None  # over how many examples it was
    training_seconds: float | None = None  # of the last round
    declared: tuple[Ranks, ...] = ()  # all that ever were: a round goes on at the ranks that it began with
    trained: TrainedUpdate | None = None


def compute_basis(client_id: str, examples: Sequence[Example]) -> str:
    """SHA-256 over the client id and the examples: a kept update is valid only for these."""
    return hashlib.sha256(client_id.encode() + b"\0" + digest_of(examples)).hexdigest()


class WorkFolder:
    """One run's folder under the participant's home."""

    def __init__(self, home: Path, run: str, basis: str = "") -> None:
        self.basis = basis
        self.folder = make_folder(make_folder(home, 0o700) / "runs" / run)
        self.slices = SliceCache(self.folder / "slices")
        self.output = self.folder / "output"
        self.checkpoints = self.folder / "checkpoints"
        self.optimizer = self.folder / "optimizer"
        self.results = Results(self.folder)
        self._path = self.folder / "state.json"
        self._lock = FileLock(self.folder / "lock")
        self.state = self._load()
        self.unsaved: str | None = None  # why the state is not on disk

    def lock(self) -> None:
        """Lock the folder against a second agent.

        Raises:
            BadInput: another agent holds the lock.
        """
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BadInput(f"another agent is at work in {self.folder}; give this one its own --home") from None

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def clear_output(self) -> Path:
        """Empty the output folder, drop the update in it, and return the folder."""
        self._change(trained=None)
        shutil.rmtree(self.output, ignore_errors=True)
        return make_folder(self.output)

    def find_trained(
        self,
        round_: int,
        adapter: str,
        trainable: Trainable = "slice",
        ranks: tuple[int, Mapping[str, int], int | None] | None = None,
    ) -> TrainedUpdate | None:
        """The kept update of this round, slice and kind of training; None where there is none or its file changed.

        `ranks`: its rank, pattern and hold_rank, as assigned; None where the slice says them, of which all is trained.
        """
        update, expected = self.state.trained, (round_, adapter, trainable)
        if update is None or (update.round, update.adapter, update.upload.trainable) != expected:
            return None
        if ranks is not None and (update.upload.rank, update.upload.rank_pattern, update.upload.hold_rank) != ranks:
            return None
        return self.pending_update()

    def pending_update(self) -> TrainedUpdate | None:
        """The kept update of any round; None where there is none, its basis differs, or its file changed."""
        update = self.state.trained
        if update is None or update.basis != self.basis:
            return None
        path = self.output / update.file
        return update if path.is_file() and sha256_of(path) == update.upload.sha256 else None

    def save_trained(self, trained: TrainedUpdate) -> None:
        """Record an update; its file is synced to disk before the state names it."""
        sync_file(self.output / trained.file)
        self._change(trained=trained)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def drop_trained(self) -> None:
        """Delete the kept update."""
        self._change(trained=None)
        shutil.rmtree(self.output, ignore_errors=True)

    def set_evaluated(self, sha256: str, sample: SampleSize | None = None) -> None:
        """Record the slice whose evaluation was reported, and over how many examples it was."""
        self._change(evaluated=sha256, sample=None if sample is None else EvaluatedSample(**vars(sample)))

    def set_training_seconds(self, seconds: float) -> None:
        """Record how long a round's training took."""
        self._change(training_seconds=seconds)

    def add_declared(self, ranks: Ranks) -> None:
        """Record ranks that are about to be declared."""
        if ranks not in self.state.declared:
            self._change(declared=(*self.state.declared, ranks))

    def own_adapter(self, trained: TrainedUpdate) -> Path:
        """The folder of the adapter that was trained, beside its update."""
        return self.output / trained.own if trained.own else (self.output / trained.file).parent

    def _load(self) -> WorkState:
        """The saved state; a damaged file counts as none: at worst a step is repeated."""
        try:
            return WorkState.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return WorkState()

    def _change(self, **fields: object) -> None:
        """Take over a state; one that cannot be written is kept in memory, so that a full disk costs no finished update."""
        self.state, self.unsaved = self.state.model_copy(update=fields), None
        try:
            write_whole(self._path, self.state.model_dump_json(indent=2).encode())
        except BadInput as error:  # what the file says of an older update is checked against that update's own file
            self.unsaved = str(error)
