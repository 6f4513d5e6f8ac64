"""A folder holds one experiment, and one simulation works in it."""

from pathlib import Path

import pytest

from flexlora_simulation.engine.experiment_folder import claimed
from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.experiment import Experiment, parse

EXPERIMENT = parse({"name": "one", "workload": {"name": "banking77", "data": "d", "model": "m"}, "run": {"rounds": 1}})


def changed(**fields: object) -> Experiment:
    return EXPERIMENT.model_copy(update=fields)


def test_the_same_experiment_goes_on_in_its_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(tmp_path / "folder", EXPERIMENT):
            pass


def test_it_goes_on_where_an_earlier_version_began_it_that_had_fewer_fields(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(EXPERIMENT.model_dump_json(exclude_defaults=True))
    with claimed(tmp_path, EXPERIMENT):
        pass


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path, EXPERIMENT):
        pass
    with (
        pytest.raises(ExperimentError, match=r"of another seed and run\.rounds; give this one another"),
        claimed(tmp_path, changed(seed=1, run={"rounds": 2})),
    ):
        pass


def test_a_second_simulation_in_a_folder_is_refused(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, EXPERIMENT),
        pytest.raises(SimulationError, match="another simulation is at work"),
        claimed(tmp_path, EXPERIMENT),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulationError, match="cannot create the folder"), claimed(tmp_path / "file", EXPERIMENT):
        pass
