"""Each participant alone, and everybody's examples in one place."""

from pathlib import Path

import pytest

from flexlora_simulation import simulate
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.catalogue import method
from flexlora_simulation.methods.definition import drawn
from flexlora_simulation.population.who_trains import POOLED
from tests.support.simulated import folder_with_database, here


def test_each_participant_that_trains_does_so_alone(experiment: Experiment) -> None:
    plan = method("local")(experiment)
    seen = {one.name: one for one in drawn(experiment) if one.part.seen}
    assert plan.alone
    assert [stage.only for stage in plan.stages] == list(seen)
    for stage in plan.stages:
        own, *others = drawn(stage)
        assert own.part == seen[str(stage.only)].part
        assert all(one.resource == seen[str(stage.only)].resource for one in (own, *others))
        assert not any(one.part.seen for one in others)
        assert stage.run["rounds"] == 2, "four rounds of three among six: twice each"


@pytest.mark.slow
def test_alone_one_is_measured_on_its_own_examples(experiment: Experiment, tmp_path: Path) -> None:
    stage = method("local")(experiment).stages[0]
    results = simulate(stage, folder_with_database(tmp_path / "run"), executor=here)
    assert set(results.participants.participant) == {stage.only}
    heldout = results.evaluations[results.evaluations["on"] == "heldout"]
    assert set(heldout.participant) == {stage.only}


def test_central_training_has_everybodys_examples(experiment: Experiment) -> None:
    seen = [one for one in drawn(experiment) if one.part.seen]
    [stage] = method("central")(experiment).stages
    assert stage.run["training"]["max_steps"] == 3, "of the three of a round"  # type: ignore[index,call-overload]
    pooled = drawn(stage)[0]
    assert sorted(pooled.part.train) == sorted(index for one in seen for index in one.part.train)


@pytest.mark.slow
def test_central_training_is_measured_on_each_participants_examples(experiment: Experiment, tmp_path: Path) -> None:
    seen = [one for one in drawn(experiment) if one.part.seen]
    [stage] = method("central")(experiment).stages
    results = simulate(stage, folder_with_database(tmp_path / "run"), executor=here)
    assert set(results.participants.participant) == {POOLED}
    assert set(results.participants["rank"]) == {4}
    heldout = results.evaluations[results.evaluations["on"] == "heldout"]
    assert set(heldout.participant) == {one.name for one in seen}


def test_without_a_number_of_steps_central_training_has_fewer_rounds(experiment: Experiment) -> None:
    run = {**experiment.run, "training": {"learning_rate": 0.01}}
    [stage] = method("central")(experiment.model_copy(update={"run": run})).stages
    assert stage.run["rounds"] == 2, "half of them take part in a round"
