"""Validation of run definitions: the problem names the first thing to change."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from flexlora_server.errors import Refusal
from flexlora_server.lifecycle.validation import check_spec
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.run_checks import ALPHA_MAX
from tests.support.kit import spec

HEAD = {"name": "classifier.weight", "shape": [3, 24]}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ranks": [2, 64]}, "rank 64 exceeds what any module can hold, which is 24"),
        ({"ranks": [2, 2]}, "repeats a rank"),
        ({"strategy": "fedavg"}, "fedavg"),
        ({"strategy": "ffa"}, "ffa averages the factors and needs one rank for all"),
        ({"upload_dtype": "float16", "strategy": "raflora"}, "may not fit into float16 .values up to 5e.06"),
        ({"strategy": "rolora"}, "rolora averages the factors and needs one rank for all"),
        *(
            ({"strategy": "rolora", "ranks": [4], **changes}, f"rolora {why}")
            for changes, why in (
                ({"late_updates": "next-round"}, "trains another factor in the next round; a late update cannot count"),
                ({"robust": [{"kind": "cosine", "minimum": 0.0}]}, "changes one factor in each round, at right angles"),
                ({"training": {"optimizer_state": "keep"}}, "trains another factor in the next round; its optimizer"),
            )
        ),
        ({"strategy": "flora", "strategy_options": {"leak": 0.1}}, "flora has no option 'leak': leave it out"),
        (
            {"strategy": "hetlora", "robust": [{"kind": "cosine", "minimum": 0.0}, {"kind": "geometric-median"}]},
            "hetlora weighs updates by their norm, which undoes geometric-median",
        ),
        (
            {"strategy": "nonsense"},
            "choose one of fedavg, fedsvd, ffa, flexlora, flexlora-residual, flora, hetlora, raflora, rolora",
        ),
        ({"min_clients": 2, "min_updates": 3}, "min_updates 3 exceeds min_clients 2"),
        ({"min_clients": 3, "clients_per_round": 2}, "clients_per_round 2 is less than min_clients 3"),
        ({"extra": [HEAD | {"name": "weight"}]}, "must be named MODULE.PARAMETER"),
        ({"extra": [HEAD, HEAD]}, "'classifier.weight' is named 2 times"),
        *(
            ({"model": {"id": "m", "task_type": task}}, f"{task} needs model.labels")
            for task in ("SEQ_CLS", "TOKEN_CLS", "IMAGE_CLASSIFICATION")
        ),
        *(
            ({"model": {"id": "m", "task_type": task, "labels": ["a"]}}, f"{task} takes no model.labels")
            for task in ("CAUSAL_LM", "SEQ_2_SEQ_LM")
        ),
        ({"model": {"id": "m", "task_type": "SEQ_CLS", "labels": ["a", "a"]}}, "names a label twice"),
        (
            {"model": {"id": "m", "task_type": "TOKEN_CLS", "labels": ["a"], "problem_type": "multi-label"}},
            "problem_type multi-label is for SEQ_CLS",
        ),
        (
            {"model": {"id": "m", "task_type": "SEQ_2_SEQ_LM"}, "training": {"packing": True}},
            "packing is for CAUSAL_LM",
        ),
        ({"upload_dtype": "float16", "norm_bound": 1e6}, "may not fit into float16"),
        (
            {"upload_dtype": "float16", "norm_bound": 1e5, "extra": [HEAD]},
            "may not fit into float16 .values up to 100000",
        ),
        (
            {"upload_dtype": "float16", "norm_bound": 1e5, "strategy": "fedavg", "ranks": [8]},
            "may not fit into float16 .values up to 100000",
        ),
        (
            {"upload_dtype": "float16", "norm_bound": 1e5, "strategy": "ffa", "ranks": [8], "extra": [HEAD]},
            "may not fit into float16 .values up to 100000",
        ),
        (
            {
                "upload_dtype": "float16",
                "strategy": "flora",
                "rounds": 14,
            },  # each adds an update of the bound, served at half
            "may not fit into float16 .values up to 70000",
        ),
        ({"upload_dtype": "float16", "strategy": "nonsense"}, "choose one of fedavg"),
        ({"scaling": {"alpha_per_rank": 125_001}}, "rank 8 would be served with alpha 1.00001e\\+06"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Refusal, match=why) as refused:
        check_spec(RunSpec.model_validate(spec(**changes)))
    assert refused.value.problem.code == "invalid-run"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_works_passes(dtype: str) -> None:
    check_spec(RunSpec.model_validate(spec(upload_dtype=dtype, extra=[HEAD])))
    check_spec(RunSpec.model_validate(spec(upload_dtype=dtype, norm_bound=1e5)))  # B is served at half of it
    check_spec(RunSpec.model_validate(spec(upload_dtype=dtype, strategy="flora", rounds=13)))
    check_spec(RunSpec.model_validate(spec(upload_dtype=dtype, strategy="hetlora")))
    check_spec(RunSpec.model_validate(spec(upload_dtype=dtype, strategy="ffa", ranks=[8])))
    ffa = spec(upload_dtype=dtype, strategy="ffa", ranks=[8], norm_bound=1e5)  # A stays round 0's
    check_spec(RunSpec.model_validate(ffa))


def test_the_largest_alpha_served_is_the_largest_an_upload_may_have() -> None:
    check_spec(RunSpec.model_validate(spec(scaling={"alpha_per_rank": ALPHA_MAX / 8})))
    announcement = {"rank": 8, "examples": 1, "size": 100, "sha256": "0" * 64}
    assert UploadCreate.model_validate({**announcement, "alpha": ALPHA_MAX}).alpha == ALPHA_MAX
    with pytest.raises(ValidationError, match="alpha"):
        UploadCreate.model_validate({**announcement, "alpha": math.nextafter(ALPHA_MAX, math.inf)})
