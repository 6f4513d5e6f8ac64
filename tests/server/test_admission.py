"""Runs that cannot work are refused with the first thing to change."""

from typing import Any

import pytest

from flexlora_server.admission import check_spec
from flexlora_server.errors import Refusal
from flexlora_shared.messages.runs import RunSpec
from tests.kit import spec

HEAD = {"name": "classifier.weight", "shape": [3, 24]}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ranks": [2, 64]}, "exceeds what 'layers.0.q_proj' of 20 by 24 can hold"),
        ({"ranks": [2, 2]}, "repeats a rank"),
        ({"strategy": "fedavg"}, "fedavg"),
        ({"strategy": "nonsense"}, "choose one of fedavg, flexlora, flexlora-residual"),
        ({"min_clients": 2, "min_updates": 3}, "min_updates 3 exceeds min_clients 2"),
        ({"min_clients": 3, "clients_per_round": 2}, "clients_per_round 2 is less than min_clients 3"),
        ({"extra": [HEAD | {"name": "weight"}]}, "must be named MODULE.PARAMETER"),
        ({"extra": [HEAD, HEAD]}, "'classifier.weight' is named 2 times"),
        ({"model": {"id": "m", "task_type": "SEQ_CLS"}}, "SEQ_CLS needs model.labels"),
        ({"upload_dtype": "float16", "norm_bound": 1e6}, "may not fit into float16"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Refusal, match=why) as refused:
        check_spec(RunSpec.model_validate(spec(**changes)))
    assert refused.value.problem.code == "invalid-run"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_works_passes(dtype: str) -> None:
    check_spec(RunSpec.model_validate(spec(upload_dtype=dtype, extra=[HEAD])))
