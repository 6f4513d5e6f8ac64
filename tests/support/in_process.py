"""An executor of the simulation that does each job at once in this process: nothing is spawned, so what a test patches holds."""

from concurrent.futures import Future
from importlib import import_module
from pathlib import Path

import pytest

from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.experiment import Experiment


class InProcess:
    """Stands in for `flexlora_simulation.engine.processes.Processes`."""

    def __init__(self, experiment: Experiment, folder: Path, processes: int = 1, device: str = "cpu") -> None:
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


def simulate_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `simulate` run its jobs here."""
    module = import_module("flexlora_simulation.simulation")  # whose name in the package is that of its function
    monkeypatch.setattr(module, "Processes", InProcess)
