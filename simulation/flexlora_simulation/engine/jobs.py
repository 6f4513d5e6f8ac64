"""What the engine asks of its processes: trainings and evaluations. Everything in a job can be sent to another machine."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import UploadCreate

UPDATES = "updates"  # folder in the experiment's, of updates that were trained and not delivered; emptied at the start


@dataclass(frozen=True)
class TrainingJob:
    """One participant's training of one task.

    slice: the safetensors file it is served. max_steps: after which training ends as at the deadline; None: as the run says.
    """

    participant: str
    task: Task
    slice: Path
    max_steps: int | None = None


@dataclass(frozen=True)
class TrainedUpdate:
    """What it uploads: the announcement and the file, which is deleted after its delivery.

    cpu_seconds: of the process, for this training.
    """

    upload: UploadCreate
    file: Path
    cpu_seconds: float


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation of a slice of a published adapter.

    on: "test", "unseen", or the name of a participant whose held-out examples are meant. rank_pattern: ranks of modules that
    differ.
    """

    spec: RunSpec
    round: int
    rank: int
    slice: Path
    on: str
    rank_pattern: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """Metrics by name, over so many examples; `examples_of`: of those that are over fewer."""

    metrics: dict[str, float]
    examples: int
    cpu_seconds: float
    examples_of: Mapping[str, int] = field(default_factory=dict)


class Executor(Protocol):
    """Runs jobs, several at a time; the results do not depend on how many.

    A future's TrainingError or ClientError is the failure of one participant; any other error ends the simulation.
    """

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        """Begin a training."""

    def evaluate(self, job: EvaluationJob) -> "Future[Evaluated]":
        """Begin an evaluation."""

    def close(self) -> None:
        """Stop; jobs that have not begun are dropped."""
