"""The default executor: processes of one thread each on this machine."""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
from transformers.utils import logging

from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.experiment import Experiment

_process: ParticipantProcess  # of the process that this module is loaded in


class Processes:
    """An `Executor`. Spawned: a fork would inherit torch's threads in a state that they are not in."""

    def __init__(self, experiment: Experiment, folder: Path, processes: int, device: str = "cpu") -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, context, _begin, (experiment, folder, device))

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        """Begin a training."""
        return self._pool.submit(_train, job)

    def evaluate(self, job: EvaluationJob) -> "Future[Evaluated]":
        """Begin an evaluation."""
        return self._pool.submit(_evaluate, job)

    def close(self) -> None:
        """Stop; jobs that have not begun are dropped."""
        self._pool.shutdown(cancel_futures=True)


def _begin(experiment: Experiment, folder: Path, device: str) -> None:
    global _process
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    _process = ParticipantProcess(experiment, folder, device)


def _train(job: TrainingJob) -> TrainedUpdate:
    return _process.train(job)


def _evaluate(job: EvaluationJob) -> Evaluated:
    return _process.evaluate(job)
