"""An executor that does each job at once in this process: for many small experiments, each of which would wait for processes."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import torch

from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess, silence
from flexlora_simulation.experiment import Experiment

J = TypeVar("J")
R = TypeVar("R")


class SameProcess:
    """An `Executor`; on one thread, as each of `Processes` is, so that the figures are the same."""

    def __init__(self, participants: ParticipantProcess) -> None:
        self._participants = participants
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        silence()

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        """Train now."""
        return _ended(self._participants.train, job)

    def evaluate(self, job: EvaluationJob) -> "Future[Evaluated]":
        """Evaluate now."""
        return _ended(self._participants.evaluate, job)

    def close(self) -> None:
        """Give the threads back."""
        torch.set_num_threads(self._threads)


def same_process(experiment: Experiment, folder: Path) -> SameProcess:
    """For `simulate(executor=...)`."""
    return SameProcess(ParticipantProcess(experiment, folder))


def _ended(work: Callable[[J], R], job: J) -> "Future[R]":
    future = Future[R]()
    try:
        future.set_result(work(job))
    except Exception as error:  # whoever asks for the result is told
        future.set_exception(error)
    return future
