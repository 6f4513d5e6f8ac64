"""The work folder of one run: cached slices, the trained update kept until its receipt, and where things stand.

`state.json` is replaced as a whole after the update is on disk, so an agent that dies between training and receipt
sends what it trained; one that dies while training finds no update and trains again.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from flexlora_client.agent.slice_cache import SliceCache
from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, sha256_of, sync_file, write_whole
from flexlora_client.training.examples import Example
from flexlora_shared.messages.base import Message, RunName, Sha256
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.messages.uploads import UploadCreate


class TrainedUpdate(Message):
    """A trained update that has no receipt yet: what it was trained from and how it is announced."""

    run: RunName
    basis: str = ""  # who trained it on which examples; see `basis_of`
    round: int
    attempt: int
    adapter: Sha256  # of the slice it started from
    file: str  # name inside the output folder
    upload: UploadCreate


class WorkState(Message):
    """Where this participant stands in the run."""

    evaluated: Sha256 | None = None  # the last slice whose evaluation was reported
    trained: TrainedUpdate | None = None


def compute_basis(client_id: str, examples: Sequence[Example]) -> str:
    """SHA-256 over who trains and the content of the examples: an update counts only for these."""
    digest = hashlib.sha256(client_id.encode())
    for example in examples:
        digest.update(f"\0{example!r}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class WorkFolder:
    """One run's folder under the participant's home."""

    def __init__(self, home: Path, run: str, basis: str = "") -> None:
        self.basis = basis
        self.folder = make_folder(make_folder(home, 0o700) / "runs" / run)
        self.slices = SliceCache(self.folder / "slices")
        self.output = self.folder / "output"
        self._path = self.folder / "state.json"
        self._lock = FileLock(self.folder / "lock")
        self.state = self._load()

    def lock(self) -> None:
        """Keep a second agent out of this folder.

        Raises:
            BadInput: one is at work in it.
        """
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BadInput(f"another agent is at work in {self.folder}; give this one its own --home") from None

    def release(self) -> None:
        """Let the next agent in."""
        self._lock.release()

    def fresh_output(self) -> Path:
        """An empty folder to train into; what lay there is forgotten."""
        self._save(WorkState(evaluated=self.state.evaluated))
        shutil.rmtree(self.output, ignore_errors=True)
        return make_folder(self.output)

    def trained(self, round_: int, adapter: str, trainable: Trainable = "slice") -> TrainedUpdate | None:
        """The update already trained for this round from this slice, as asked, on this basis, if its file is still sound."""
        update, expected = self.state.trained, (round_, adapter, trainable)
        if update is None or (update.round, update.adapter, update.upload.trainable) != expected:
            return None
        return self.kept()

    def kept(self) -> TrainedUpdate | None:
        """The update that has no receipt yet, of whichever round, if it is of this basis and its file is still sound."""
        update = self.state.trained
        if update is None or update.basis != self.basis:
            return None
        path = self.output / update.file
        return update if path.is_file() and sha256_of(path) == update.upload.sha256 else None

    def keep_trained(self, trained: TrainedUpdate) -> None:
        """Remember an update; its file is forced to disk before the state names it."""
        sync_file(self.output / trained.file)
        self._save(WorkState(evaluated=self.state.evaluated, trained=trained))

    def drop_trained(self) -> None:
        """Forget the update: it has its receipt, or its round no longer takes it."""
        self._save(WorkState(evaluated=self.state.evaluated))
        shutil.rmtree(self.output, ignore_errors=True)

    def set_evaluated(self, sha256: str) -> None:
        """Remember which slice was evaluated and reported."""
        self._save(WorkState(evaluated=sha256, trained=self.state.trained))

    def _load(self) -> WorkState:
        """The state as saved; a damaged file counts as none, at worst something is done twice."""
        try:
            return WorkState.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return WorkState()

    def _save(self, state: WorkState) -> None:
        write_whole(self._path, state.model_dump_json(indent=2).encode())
        self.state = state
