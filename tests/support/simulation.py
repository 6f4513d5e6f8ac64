"""Simulations in the test's own process."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.experiment import Experiment


class InThisProcess:
    """An executor without processes of its own, which take seconds to begin."""

    def __init__(self, experiment: Experiment, folder: Path, processes: int, device: str = "cpu") -> None:
        self._process = ParticipantProcess(experiment, folder, device)

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        done = Future[TrainedUpdate]()
        done.set_result(self._process.train(job))
        return done

    def evaluate(self, job: EvaluationJob) -> "Future[Evaluated]":
        done = Future[Evaluated]()
        done.set_result(self._process.evaluate(job))
        return done

    def close(self) -> None:
        """Nothing runs."""


@contextmanager
def processes_in_this_one() -> Iterator[None]:
    """For the block, experiments run without processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        # the package has a function of the module's name
        patch.setattr(import_module("flexlora_simulation.simulation"), "Processes", InThisProcess)
        yield
