"""Small simulated federations: a data set of the format of BANKING77 for a tiny Bert, and an executor in this process."""

import csv
import hashlib
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.training.contract import ADAPTER_FILE, Job, Outcome
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.engine.jobs import TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.engine.same_process import SameProcess
from flexlora_simulation.experiment import Experiment, parse
from flexlora_simulation.population.participants import Participant
from tests.support.databases import migrated_sqlite
from tests.support.tiny_models import LABELS, make_bert

WORDS = {"bird": "sings flies", "fish": "swims dives", "tree": "grows rustles"}


@cache
def _materials(folder: Path) -> tuple[Path, Path]:
    """The data set and the model, in `folder`."""
    for part, count in (("train", 20), ("test", 4)):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows((f"it {WORDS[label]} {n}", label) for n in range(count) for label in LABELS)
    return folder, make_bert(folder / "bert")


def tiny_experiment(folder: Path, **changes: Any) -> Experiment:
    """Four participants of ranks 2 and 4, two rounds of one step each, which take a second; `run` is merged into its fields.

    folder: of the data and the model, made once.
    """
    data, model = _materials(folder)
    training = {"max_steps": 1, "batch_size": 4, "max_length": 16}
    run = {"rounds": 2, "clients_per_round": 3, "gather_timeout": 0.0, "training": training}
    content: dict[str, Any] = {
        "name": "tiny",
        "workload": {"name": "banking77", "data": str(data), "model": str(model)},
        "partition": {"participants": 4},
        "resources": [{"rank": 2}, {"rank": 4}],
        "evaluation": {"on": []},
        "run": run | changes.pop("run", {}),
    }
    return parse(content | changes)


class Here(SameProcess):
    """An executor that does each job at once, in this process, and remembers the trainings."""

    def __init__(self, participants: ParticipantProcess) -> None:
        super().__init__(participants)
        self.trained: list[TrainingJob] = []

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        self.trained.append(job)
        return super().train(job)


def here(experiment: Experiment, folder: Path) -> Here:
    """For `simulate(executor=...)`."""
    return Here(ParticipantProcess(experiment, folder))


def folder_with_database(folder: Path) -> Path:
    """The folder of an experiment whose coordinator has its empty database already, which takes long to make."""
    (folder / "coordinator").mkdir(parents=True)
    migrated_sqlite(folder / "coordinator")
    return folder


class Nudging(ParticipantProcess):
    """Trains without a model: each participant adds to every tensor what is its own in that round."""

    def _local_trainer(self, participant: Participant, spec: RunSpec) -> LocalTrainer:
        trainer = Nudges(participant.name)
        return LocalTrainer(trainer, Models(), self._of(participant.part.train), (), 0, "cpu", None, participant.name)


@dataclass(frozen=True)
class Nudges:
    """The training loop of `Nudging`."""

    participant: str

    def train(self, job: Job) -> Outcome:
        digest = hashlib.sha256(f"{self.participant} {job.round}".encode()).digest()
        step = int.from_bytes(digest[:2]) / 2**20
        trained = {key: tensor + step for key, tensor in load_file(job.adapter / ADAPTER_FILE).items()}
        save_file(trained, job.output / ADAPTER_FILE)
        metrics = {"train_loss": step, "train_steps": float(job.max_steps or 1)}
        return Outcome(job.output / ADAPTER_FILE, len(job.train), metrics)
