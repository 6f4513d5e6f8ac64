"""Checks of definitions that the command `describe` and the coordinator share."""

from typing import Any

import pytest

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.run_checks import LABELLED, faults, warnings
from tests.support.kit import spec

OTHER_TASKS = ("SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "IMAGE_CLASSIFICATION")


def defined(task: str, training: dict[str, Any]) -> RunSpec:
    model = {"id": "m", "task_type": task, "labels": ["a", "b"] if task in LABELLED else []}
    return RunSpec.model_validate(spec(model=model, training=training))


@pytest.mark.parametrize("task", OTHER_TASKS)
@pytest.mark.parametrize("training", [{"packing": True}, {"prompt_format": "chatml"}, {"learn": "all"}], ids=str)
def test_fields_that_agents_of_other_tasks_would_ignore(task: str, training: dict[str, Any]) -> None:
    [fault] = faults(defined(task, training))
    assert fault == f"training.{next(iter(training))} is for CAUSAL_LM; leave it out of a run of {task}."
    assert faults(defined("CAUSAL_LM", training)) == []
    assert faults(defined(task, {})) == []


@pytest.mark.parametrize(
    ("ranks", "begins"),
    [([8, 512], None), ([8, 513], "rank 513 is above 512"), ([600, 513], "ranks 513, 600 are above 512")],
)
def test_ranks_that_nothing_serves_are_told(ranks: list[int], begins: str | None) -> None:
    module = {"name": "up_proj", "out_features": 1024, "in_features": 1024}
    run = RunSpec.model_validate(spec(ranks=ranks, modules=[module]))
    assert faults(run) == []
    assert [warning[: len(begins or "")] for warning in warnings(run)] == ([begins] if begins else [])
