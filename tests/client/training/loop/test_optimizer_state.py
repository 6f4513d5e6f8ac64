"""AdamW's moments from round to round: kept, or fresh with a word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.training.contract import Compute, Job
from flexlora_client.training.data.examples import Example, Prompted
from flexlora_client.training.loop import optimizer_state
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.loop.step import Stepper
from flexlora_client.training.models.load_model import Models
from tests.support.tiny_models import make_job, make_run, make_slice

QUESTIONS: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(8)]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture
def job(llama: Path, tmp_path: Path) -> Job:
    """2 steps."""
    spec = make_run(llama, target=["q_proj", "down_proj"])
    training = spec.training.model_copy(update={"epochs": 1, "optimizer_state": "keep"})
    spec = spec.model_copy(update={"training": training})
    served = make_slice(tmp_path / "served", llama, spec)
    return make_job(spec, served, QUESTIONS, tmp_path / "out", state=tmp_path / "state")


def next_round(job: Job, models: Models, **changes: Any) -> tuple[bytes, list[str]]:
    """What round 2 makes of the same slice, and what it says."""
    told: list[str] = []
    after = replace(job, round=2, notice=told.append, **changes)
    return StandardTrainer(models).train(after).adapter.read_bytes(), told


def test_kept_moments_change_the_next_round_and_only_that(job: Job, models: Models) -> None:
    fresh, told = next_round(job, models, state=None)
    assert told == []
    StandardTrainer(models).train(job)
    kept, told = next_round(job, models)
    assert kept != fresh
    assert told == []
    again, _ = next_round(job, models)
    assert again == kept, "another attempt of the round starts from the same state"


@pytest.mark.parametrize(
    "changes", [{"round": 3}, {"participant": "other"}, {"compute": Compute(optimizer="adamw-8bit")}]
)
def test_a_state_that_does_not_fit_is_left_with_a_word(job: Job, models: Models, changes: dict[str, Any]) -> None:
    StandardTrainer(models).train(job)
    told: list[str] = []
    loaded = StandardTrainer(models)._start(job)
    stepper = Stepper(loaded, job.spec.training)
    optimizer_state.restore_optimizer(stepper, replace(job, **{"round": 2, "notice": told.append, **changes}))
    assert not stepper.optimizer.state
    assert len(told) == 1
    assert "starts fresh" in told[0]


def test_a_damaged_file_is_left_with_a_word(job: Job, models: Models) -> None:
    StandardTrainer(models).train(job)
    assert job.state is not None
    [path] = job.state.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    trained, told = next_round(job, models)
    assert trained == next_round(job, models, state=None)[0]
    assert "starts fresh" in told[0]


def test_two_rounds_are_kept(job: Job, models: Models) -> None:
    for number in (1, 2, 3):
        StandardTrainer(models).train(replace(job, round=number))
    assert job.state is not None
    assert sorted(path.name for path in job.state.iterdir()) == ["round-000002.pt", "round-000003.pt"]


@pytest.mark.parametrize("changes", [{"trainable": "fresh"}, {"round": 1}])
def test_nothing_is_said_where_no_state_can_be(job: Job, models: Models, changes: dict[str, Any]) -> None:
    told: list[str] = []
    StandardTrainer(models).train(replace(job, **changes, notice=told.append))
    assert told == []
