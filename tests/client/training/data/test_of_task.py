"""Which kinds of examples each task takes."""

from typing import Any

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import (
    Chat,
    Choice,
    Example,
    Instructed,
    Labelled,
    Pictured,
    Plain,
    Prompted,
    Scored,
    Tagged,
    Turn,
)
from flexlora_client.training.data.of_task import check_task
from flexlora_shared.messages.runs import ModelSpec

ANSWERED: tuple[Example, ...] = (
    Prompted("a", "b"),
    Instructed("a", "", "b"),
    Chat((Turn("assistant", "a"),)),
    Choice("a", ("b", "c"), 0),
)
OTHERS: tuple[Example, ...] = (
    Plain("a"),
    Labelled("a", 0),
    Scored("a", (1.0,)),
    Tagged(("a",), (0,)),
    Pictured(b"", 0),
)


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        ({"task_type": "CAUSAL_LM"}, (*ANSWERED, Plain("a"))),
        ({"task_type": "SEQ_2_SEQ_LM"}, ANSWERED),
        ({"task_type": "SEQ_CLS"}, (Labelled("a", 0),)),
        ({"task_type": "SEQ_CLS", "problem_type": "multi-label"}, (Scored("a", (1.0,)),)),
        ({"task_type": "SEQ_CLS", "problem_type": "regression"}, (Scored("a", (1.0,)),)),
        ({"task_type": "TOKEN_CLS"}, (Tagged(("a",), (0,)),)),
        ({"task_type": "IMAGE_CLASSIFICATION"}, (Pictured(b"", 0),)),
    ],
)
def test_a_task_takes_its_own_kinds_alone(model: dict[str, Any], taken: tuple[Example, ...]) -> None:
    spec = ModelSpec(id="tiny", labels=("a", "b"), **model)
    check_task(taken, spec)
    for other in {*ANSWERED, *OTHERS} - {*taken}:
        with pytest.raises(DataError, match="another task than the run's; it learns from"):
            check_task((*taken, other), spec)
    with pytest.raises(DataError, match="no examples"):
        check_task((), spec)
