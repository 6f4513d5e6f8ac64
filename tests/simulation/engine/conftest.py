"""What the tests of the engine share: a data set with its model, and quick federations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexlora_simulation import Results, simulate
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.results.tables import Row
from tests.support.simulated import Here, Nudging, folder_with_database, tiny_experiment

Run = Callable[..., tuple[Results, Here]]


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data set and the model."""
    return tmp_path_factory.mktemp("materials")


@pytest.fixture
def run(materials: Path, tmp_path: Path) -> Run:
    """Runs a federation of `tiny_experiment`, without a model unless told otherwise; its results and its executor."""

    def running(
        process: type[ParticipantProcess] = Nudging,
        on_row: Callable[[Row], None] = lambda row: None,
        folder: str = "run",
        **changes: Any,
    ) -> tuple[Results, Here]:
        experiment, place = tiny_experiment(materials, **changes), tmp_path / folder
        executor = Here(process(experiment, place))
        if not place.exists():
            folder_with_database(place)
        return simulate(experiment, place, executor=lambda *_: executor, on_row=on_row), executor

    return running
