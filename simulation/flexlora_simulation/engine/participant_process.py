"""What a process of the simulation does with a job: the agent's own training and evaluation, for any participant.

A process loads data and base model once; between jobs only adapters change hands. Each participant keeps the agent's work folder,
so what an agent keeps from round to round (optimizer state, own tensors) is kept here too.
"""

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console
from transformers.utils import logging

from flexlora_client.agent.local_parts import EVERYTHING_SHARED
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.round_time import RoundTime
from flexlora_client.agent.slice_cache import CachedSlice, request_for_task
from flexlora_client.agent.train_round import TrainRound
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.files import make_folder
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE, Compute, Trainer
from flexlora_client.training.data.examples import Example
from flexlora_client.training.evaluation.own_metric import OwnMetric, load_metric
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.plugin import load_trainer
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import held_ranks
from flexlora_simulation.engine.jobs import UPDATES, Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.sparse_trainer import SparseTrainer
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.population.participants import Participant, draw_participants
from flexlora_simulation.workloads.contract import Corpus, Item, Workload
from flexlora_simulation.workloads.registry import open_workload


def silence() -> None:
    """Without transformers' bars, and its notes of a head that is new, from each process that loads the base model."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


class UnboundedTime(RoundTime):
    """Training is never cut short by this machine's clock: deadlines are in virtual time."""

    def training_deadline(self, deadline: str, clock_ahead: float, size: int) -> float:
        """No end."""
        return math.inf


@dataclass(frozen=True)
class ParticipantProcess:
    """Everything a process keeps between jobs. `folder`: the experiment's, for work folders and slices."""

    experiment: Experiment
    folder: Path
    device: str = "cpu"

    def train(self, job: TrainingJob) -> TrainedUpdate:
        """The participant's update of this task.

        Raises:
            TrainingError, BadInput: as the agent's training.
        """
        cpu = time.process_time()
        participant, task = self._participants[job.participant], job.task
        work = WorkFolder(self.folder / "participants" / participant.name, task.run)
        served = self._served(job.slice, task.spec, *held_ranks(task.rank, task.rank_pattern, task.hold_rank))
        trained = TrainRound(
            task.spec,
            work,
            self._local_trainer(participant, task.spec),
            Reporter(task.run, console=Console(quiet=True)),
            EVERYTHING_SHARED,
            UnboundedTime(),
            clock_ahead=0.0,
            max_steps=job.max_steps,
        ).train(task, request_for_task(task), served)
        file = make_folder(self.folder / UPDATES) / f"{participant.name}.{task.round}.{task.attempt}"
        (work.output / trained.file).replace(file)
        self._tidy(participant.name, task.run)
        return TrainedUpdate(trained.upload, file, time.process_time() - cpu)

    def _tidy(self, participant: str, run: str) -> None:
        """Keep of a participant's folder what counts in later rounds alone: thousands of them would fill the disk."""
        home = self.folder / "participants" / participant
        for path in (home / "runs" / run).iterdir():
            if path.name != "optimizer":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not (home / "runs" / run / "optimizer").exists():
            shutil.rmtree(home)

    def evaluate(self, job: EvaluationJob) -> Evaluated:
        """Metrics of the slice on what the job names, and where it is asked for, the workload's metric on each group of it."""
        cpu = time.process_time()
        items = self._items(job.on)
        served = self._served(job.slice, job.spec, job.rank, dict(job.rank_pattern))
        figures, examples_of = self._measured(job, served, items), dict[str, int]()
        if self.experiment.evaluation.groups:
            for group, own in _by_group(items).items():
                name = f"{self._workload.metric}.{group}"
                figures[name] = self._measured(job, served, own)[self._workload.metric]
                examples_of[name] = len(own)
        return Evaluated(figures, len(items), time.process_time() - cpu, examples_of)

    def _measured(self, job: EvaluationJob, served: CachedSlice, items: Sequence[Item]) -> dict[str, float]:
        examples = tuple(item.example for item in items)
        own = self._workload.measure(job.spec, served.folder, examples)
        if own is not None:
            return own
        trainer = LocalTrainer(
            self._trainer,
            self._models,
            (),
            examples,
            self.experiment.evaluation.answers,
            self.device,
            None,
            compute=self._compute,
            own_metric=self._own_metric,
        )
        return trainer.evaluate(job.spec, served.folder).metrics

    def _local_trainer(self, participant: Participant, spec: RunSpec) -> LocalTrainer:
        heldout = participant.part.heldout if spec.training.select == "best-epoch" else ()
        return LocalTrainer(
            self._trainer,
            self._models,
            self._of(participant.part.train),
            self._of(heldout),
            self.experiment.evaluation.answers,
            self.device,
            None,
            participant.name,
            self._compute,
        )

    @property
    def _compute(self) -> Compute:
        return Compute(dtype=self.experiment.dtype)

    def _served(self, adapter: Path, spec: RunSpec, rank: int, pattern: dict[str, int]) -> CachedSlice:
        """The slice as an agent has it: in a folder with its configuration, shared by all who are served it."""
        folder = make_folder(self.folder / "slices" / adapter.name)
        if not (folder / CONFIG_FILE).exists():
            config = folder / f".{os.getpid()}.json"
            config.write_text(json.dumps(adapter_config(spec, rank, pattern)))
            if not (folder / ADAPTER_FILE).exists():
                link = folder / f".{os.getpid()}.safetensors"
                link.symlink_to(os.path.relpath(adapter.resolve(), folder.resolve()))  # the experiment may be moved
                link.replace(folder / ADAPTER_FILE)
            config.replace(folder / CONFIG_FILE)
        return CachedSlice.at(folder, 0)

    def _items(self, on: str) -> list[Item]:
        if on == "test":
            return self._sample(range(len(self._corpus.test)), self._corpus.test)
        if on == "unseen":
            indices = [i for one in self._participants.values() if not one.part.seen for i in one.part.train]
            return self._sample(indices, self._corpus.train)
        return [self._corpus.train[index] for index in self._participants[on].part.heldout]

    def _sample(self, indices: Sequence[int], items: Sequence[Item]) -> list[Item]:
        most = self.experiment.evaluation.examples
        chosen = list(indices)
        if most is not None and most < len(chosen):
            generator = np.random.default_rng([self.experiment.seed, 2])
            chosen = sorted(generator.choice(chosen, most, replace=False).tolist())
        return [items[index] for index in chosen]

    def _of(self, indices: tuple[int, ...]) -> tuple[Example, ...]:
        return tuple(self._corpus.train[index].example for index in indices)

    @cached_property
    def _workload(self) -> Workload:
        return open_workload(self.experiment.workload)

    @cached_property
    def _own_metric(self) -> OwnMetric | None:
        metric = self._workload.own_metric
        return load_metric(metric) if isinstance(metric, str) else metric

    @cached_property
    def _corpus(self) -> Corpus:
        return self._workload.corpus()

    @cached_property
    def _participants(self) -> dict[str, Participant]:
        return {one.name: one for one in draw_participants(self.experiment, self._corpus.train)}

    @cached_property
    def _trainer(self) -> Trainer:
        own, density = self._workload.trainer, self.experiment.sparse_density
        if density is not None:
            if own is not None:
                raise ExperimentError("sparse_density: the workload has a training loop of its own; leave it out")
            return SparseTrainer(self._models, density)
        return StandardTrainer(self._models) if own is None else load_trainer(own)

    @cached_property
    def _models(self) -> Models:
        return Models()


def _by_group(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The items of each group, in the order of the groups' names. Raises: ExperimentError, where one has none."""
    found = defaultdict[str, list[Item]](list)
    for item in items:
        if item.group is None:
            raise ExperimentError("evaluation.groups: the workload has no groups; leave it out")
        found[item.group].append(item)
    return dict(sorted(found.items()))
