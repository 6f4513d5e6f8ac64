"""The learning rate over a run, against transformers' own schedules."""

from typing import Any

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from flexlora_client.training.loop.schedule import learning_rate
from flexlora_shared.messages.runs import ModuleSpec, RunSpec, Scaling, TrainingSpec

THEIRS: dict[Any, Any] = {
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


def run(schedule: Any, warmup: float, rounds: int) -> RunSpec:
    return RunSpec(
        name="test",
        model={"id": "tiny"},  # type: ignore[arg-type]  # validated
        modules=(ModuleSpec(name="q", out_features=4, in_features=4),),
        ranks=(2,),
        scaling=Scaling(alpha=1.0),
        rounds=rounds,
        training=TrainingSpec(learning_rate=0.25, schedule=schedule, warmup=warmup),
    )


@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize(
    ("rounds", "steps", "warmup"), [(4, 10, 0.0), (4, 10, 0.25), (5, 8, 0.1), (1, 20, 0.45), (3, 1, 0.0)]
)
def test_rounds_of_equal_length_follow_transformers_schedule(
    schedule: str, rounds: int, steps: int, warmup: float
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.25)
    theirs = THEIRS[schedule](optimizer, round(warmup * rounds * steps), rounds * steps)
    for number in range(1, rounds + 1):
        for step in range(1, steps + 1):
            ours = learning_rate(run(schedule, warmup, rounds), number, step, steps)
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            theirs.step()


def test_a_round_moves_the_run_by_its_share_however_many_steps_it_has() -> None:
    spec = run("linear", 0.0, 4)
    assert learning_rate(spec, 3, 1, 7) == learning_rate(spec, 3, 1, 1000) == pytest.approx(0.125)
    assert 0 < learning_rate(spec, 4, 1000, 1000) < learning_rate(spec, 4, 7, 7)
