"""Messages are strict: nothing is coerced, nothing unknown is ignored, nothing is infinite or out of bounds."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from flexlora_shared.messages.base import Message
from flexlora_shared.messages.clients import Declaration, Enrollment, TokenRequest
from flexlora_shared.messages.runs import RunSpec, Scaling
from flexlora_shared.messages.uploads import Evaluation, UploadCreate
from tests.support.kit import spec

WIDE = {"name": "m", "out_features": 1, "in_features": 1}
HEAD: dict[str, Any] = {"name": "h.w", "shape": [2]}
UPLOAD: dict[str, Any] = {"rank": 8, "alpha": 16.0, "examples": 10, "size": 100, "sha256": "0" * 64}
VALID: dict[type[Message], dict[str, Any]] = {
    RunSpec: spec(),
    UploadCreate: UPLOAD | {"metrics": {"train_loss": 1.5}, "rank_pattern": {"q_proj": 4}},
    Declaration: {"rank": 8, "examples": 10, "hardware": {"device": "cpu", "memory_bytes": 0}},
    Evaluation: {"rank": 8, "examples": 10, "metrics": {"loss": 0.1}},
    TokenRequest: {"expires_in": 60, "note": "ward 3"},
    Enrollment: {"token": "flt_1_2", "name": "St. Mary's"[:3]},
    Scaling: {"alpha": 16.0},
}


def parse(kind: type[Message], value: Any) -> Message:
    """As the coordinator does: JSON by Python's reader, then the message."""
    return kind.model_validate(json.loads(json.dumps(value)))


@pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
def test_valid_messages_survive_the_wire(kind: type[Message]) -> None:
    message = parse(kind, VALID[kind])
    assert kind.model_validate_json(message.model_dump_json()) == message
    assert kind.model_validate(message.model_dump(mode="json")) == message


@pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
def test_unknown_fields_are_refused(kind: type[Message]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        parse(kind, VALID[kind] | {"lora_dropout_": 1})


@pytest.mark.parametrize("value", [None, [], "{}", 1])
def test_only_objects_are_messages(value: Any) -> None:
    with pytest.raises(ValidationError):
        parse(TokenRequest, value)


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(TokenRequest, {}).note = "x"  # type: ignore[attr-defined]


# strictness is the base class's: what is no number is tried once for an integer and once for a float
NOT_INTEGERS = [True, "1", 1.0, None, float("nan")]
NOT_FLOATS = [True, "1.0", None, float("nan"), float("inf"), float("-inf")]
BAD: list[tuple[type[Message], str, list[Any]]] = [
    (UploadCreate, "rank", [*NOT_INTEGERS, 0, -1, 4097]),
    (UploadCreate, "alpha", [*NOT_FLOATS, 0.0, -1.0, 1e7]),
    (UploadCreate, "use_rslora", [1, "true"]),
    (UploadCreate, "trainable", ["C", "Slice", None, ["slice"]]),
    (UploadCreate, "examples", [1.0, 0, 2**48 + 1]),
    (UploadCreate, "size", [1.0, 0, 2**46]),
    (UploadCreate, "sha256", ["0" * 63, "0" * 65, "F" * 64, "g" * 64, "0" * 64 + "\n", 0]),
    (
        UploadCreate,
        "rank_pattern",
        [{"": 1}, {"a..b": 1}, {"a\0": 1}, {"../a": 1}, {".*": 1}, {"a": 0}, {"a": True}, []],
    ),
    (UploadCreate, "rank_pattern", [{f"m{n}": 1 for n in range(4097)}, {"a" * 257: 1}, {"a\n": 1}]),
    (UploadCreate, "alpha_pattern", [{"a": 0.0}, {"a": float("nan")}, {"a": "1"}]),
    (UploadCreate, "metrics", [{"Loss": 1.0}, {"loss": float("nan")}, {"loss": 1e101}, {"loss": True}, {"": 1.0}]),
    (UploadCreate, "metrics", [{f"m{n}": 1.0 for n in range(33)}, {"a" * 65: 1.0}]),
    (Evaluation, "metrics", [{}, {"loss": float("inf")}]),
    (Declaration, "rank", [1.0, 0]),
    (Declaration, "examples", [1.0, 0]),
    (Declaration, "hardware", [{"memory_bytes": 2**63}, {"memory_bytes": -1}, {"device": "x" * 101}, {"gpu": 1}]),
    (TokenRequest, "expires_in", [1.0, 0, 31_536_001]),
    (TokenRequest, "note", ["x" * 201, "a\0b", "two\nlines", None]),
    (Enrollment, "name", ["", " a", "a\n", "a/b", "<b>", "é", "x" * 65, "a\0"]),
    (Enrollment, "token", ["x" * 201, "a\0"]),
    (Scaling, "alpha", [float("inf"), 0.0]),
    (RunSpec, "name", ["", "A", "-a", "a-", "a_b", "a/b", "..", "a" * 64, "a\n", "é"]),
    (RunSpec, "modules", [[], [{"name": "m", "out_features": 1}], [WIDE | {"name": "a b"}]]),
    (RunSpec, "modules", [[WIDE | {"out_features": n}] for n in (0, -1, 2**24 + 1, True, 1.0)]),
    (RunSpec, "extra", [[HEAD | {"shape": shape}] for shape in ([], [1] * 9, [0])]),
    (RunSpec, "extra", [[HEAD | {"init": "random"}], HEAD]),
    (RunSpec, "ranks", [[], [0], [True], ["2"], 2, list(range(1, 258))]),
    (RunSpec, "scaling", [{}, {"alpha": 1.0, "alpha_per_rank": 1.0}, {"use_rslora": True}]),
    (RunSpec, "strategy_options", [{"leak": value} for value in (-0.1, 1.1, True, "0", None, float("nan"))]),
    (
        RunSpec,
        "strategy_options",
        [{"shrink": -0.1}, {"shrink": float("inf")}, {"Leak": 0.1}, {"energy": 0.0}, {"weighting": "examples"}, None],
    ),
    (RunSpec, "rounds", [1.0, 0, 100_001]),
    (RunSpec, "min_clients", [1.0, 0]),
    (RunSpec, "min_updates", [1.0, 0]),
    (RunSpec, "clients_per_round", [0, True]),
    (RunSpec, "gather_timeout", [float("inf"), -0.1, 86_401.0]),
    (RunSpec, "round_timeout", [float("inf"), 0.0, 2_592_001.0]),
    (RunSpec, "norm_bound", [float("inf"), 0.0]),
    (RunSpec, "upload_dtype", ["float64", "F32", None]),
    (RunSpec, "seed", [1.0, -1, 2**31]),
    (RunSpec, "model", [{}, {"id": ""}, {"id": "x", "task_type": "OTHER"}, {"id": "x", "trust_remote_code": True}]),
    (RunSpec, "training", [{"max_grad_norm": float("inf")}]),  # has no bound: only the base class refuses it
    (
        RunSpec,
        "training",
        [{"learning_rate": 0.0}, {"epochs": 0}, {"batch_size": True}, {"lora_dropout": 1.0}, {"x": 1}],
    ),
]


@pytest.mark.parametrize(("kind", "field", "values"), BAD, ids=[f"{kind.__name__}.{field}" for kind, field, _ in BAD])
def test_bad_values_are_refused(kind: type[Message], field: str, values: list[Any]) -> None:
    for value in values:
        print(f"{value!r:.200}")  # shown where it passes
        with pytest.raises(ValidationError) as caught:
            parse(kind, VALID[kind] | {field: value})
        assert {error["loc"][0] for error in caught.value.errors() if error["loc"]} <= {field}


def test_numbers_beyond_float_are_not_infinity() -> None:
    with pytest.raises(ValidationError):
        UploadCreate.model_validate(json.loads(json.dumps(UPLOAD).replace("16.0", "1e400")))


def test_an_integer_may_stand_for_a_float() -> None:
    """JSON has one kind of number: 16 is a fine alpha."""
    assert UploadCreate.model_validate(UPLOAD | {"alpha": 16}).alpha == 16.0
