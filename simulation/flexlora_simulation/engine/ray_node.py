"""What a machine of a Ray cluster does with jobs: what a process here does, with the files that a job needs sent along.

Nothing of a participant stays on a machine: what it keeps from round to round comes with its training and goes back with the
update, so that any machine can train it next, also after this one is lost.
"""

import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import torch

from flexlora_client.errors import ClientError, TrainingError
from flexlora_client.files import make_folder, write_whole
from flexlora_client.training.data.store import digest_of
from flexlora_client.training.models.fingerprint import check_fingerprint
from flexlora_shared.messages.runs import ModelSpec
from flexlora_shared.plugins import WORKLOAD_GROUP, plugin_versions
from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess, silence
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Workload

PACKAGES = ("flexlora", "numpy", "peft", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Expected:
    """What must be on a machine as it is where the simulation runs."""

    versions: str
    data: str  # a digest
    base: BaseModel

    @classmethod
    def of(cls, workload: Workload, corpus: Corpus) -> "Expected":
        """What is here. Raises: DataError."""
        versions = [f"{name} {version(name)}" for name in PACKAGES]
        return cls(", ".join((*versions, *plugin_versions(WORKLOAD_GROUP))), _digest(corpus), workload.base_model())


@dataclass(frozen=True)
class SentUpdate:
    """A trained update with its file's content, and what the participant keeps for its next round, by file name.

    The update's file is relative to the experiment's folder.
    """

    update: TrainedUpdate
    content: bytes
    kept: dict[str, bytes]


class ParticipantNode:
    """One process of a machine: trains and evaluates for any participant, one at a time."""

    def __init__(self, experiment: Experiment, device: str) -> None:
        torch.set_num_threads(1)
        silence()
        self._folder = Path(tempfile.gettempdir()) / f"flexlora-simulation-{uuid4().hex}"  # there while a job runs
        self._process = _Process(experiment, self._folder, device)
        self._model: ModelSpec | None = None  # that was checked

    def check(self, expected: Expected) -> None:
        """Raises: SimulationError, where this machine would not give the same bytes, or lacks what it needs."""
        try:
            found = self._process.found()
        except SimulationError as error:
            raise SimulationError(
                f"{_name()} cannot read the workload: {error}. Data and base model must lie on every machine, at the same path"
            ) from error
        if found.versions != expected.versions:
            raise SimulationError(
                f"{_name()} runs {found.versions}, the simulation {expected.versions}: install the same"
            )
        if found.data != expected.data:
            raise SimulationError(
                f"{_name()} has other data than the simulation at the same path: copy them there anew"
            )
        if found.base != expected.base:
            raise SimulationError(
                f"{_name()} has its base model at {found.base.path}, the simulation at {expected.base.path}: it must be the "
                "same. Of a model that the workload makes, XDG_CACHE_HOME says where"
            )

    def train(self, job: TrainingJob, slice: bytes, kept: Mapping[str, bytes]) -> SentUpdate:
        """The participant's update. Raises: as `ParticipantProcess.train`; SimulationError, where the base model is another."""
        self._check_model(job.task.spec.model)
        optimizer = kept_folder(self._folder, job)
        with self._served(job.slice, slice) as path:
            write_files(optimizer, kept)
            update = self._process.train(replace(job, slice=path))
            sent = replace(update, file=update.file.relative_to(self._folder))
            return SentUpdate(sent, update.file.read_bytes(), read_files(optimizer))

    def evaluate(self, job: EvaluationJob, slice: bytes) -> Evaluated:
        """The metrics. Raises: as `ParticipantProcess.evaluate`; SimulationError, where the base model is another."""
        self._check_model(job.spec.model)
        with self._served(job.slice, slice) as path:
            return self._process.evaluate(replace(job, slice=path))

    @contextmanager
    def _served(self, name: Path, content: bytes) -> Iterator[Path]:
        """The slice's file here; at the end all that the job left is deleted."""
        path = make_folder(self._folder / "served") / name.name
        try:
            path.write_bytes(content)
            yield path
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _check_model(self, model: ModelSpec) -> None:
        if self._model == model:
            return
        try:
            check_fingerprint(model)
        except (ClientError, TrainingError) as error:
            raise SimulationError(f"{_name()} cannot use the base model: {error}") from error
        self._model = model


class _Process(ParticipantProcess):
    """A process that tells what it has."""

    def found(self) -> Expected:
        return Expected.of(self._workload, self._corpus)


def kept_folder(folder: Path, job: TrainingJob) -> Path:
    """What the participant's work folder keeps for its next round, in the folder of an experiment: the optimizer's state."""
    return folder / "participants" / job.participant / "runs" / job.task.run / "optimizer"


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that may be missing, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make these the files of the folder; each one whole, also after a crash."""
    if files:
        make_folder(folder)
    for name, content in files.items():
        write_whole(folder / name, content)
    for path in folder.glob("*"):
        if path.name not in files:
            path.unlink()


def _digest(corpus: Corpus) -> str:
    """Of the examples and of what they are dealt by, in their order."""
    items = [*corpus.train, *corpus.test]
    dealt_by = repr((len(corpus.train), [(item.label, item.group) for item in items]))
    return sha256(digest_of([item.example for item in items]) + dealt_by.encode("utf-8", "surrogatepass")).hexdigest()


def _name() -> str:
    return f"the Ray node {platform.node()}"
