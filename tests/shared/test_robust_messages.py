"""A run's robust filters: told apart by `kind`, strict, and the same after the wire."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flexlora_shared.messages.robust import Cosine, Filter, GeometricMedian, MultiKrum, NormClip
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import spec

ONE: TypeAdapter[Filter] = TypeAdapter(Filter)

shares = st.floats(0, 0.5, exclude_min=True, exclude_max=True)
filters = st.one_of(
    st.builds(NormClip, bound=st.floats(1e-9, 1e15)),
    st.builds(NormClip, median_factor=st.floats(1e-9, 1e6), history=st.integers(0, 1000)),
    st.builds(MultiKrum, byzantine_share=shares),
    st.builds(GeometricMedian),
    st.builds(Cosine, minimum=st.floats(-1, 1)),
)


@given(chosen=st.lists(filters, max_size=8))
def test_filters_survive_the_wire_in_their_order(chosen: list[Filter]) -> None:
    run = RunSpec.model_validate(spec()).model_copy(update={"robust": tuple(chosen)})
    assert RunSpec.model_validate_json(run.model_dump_json()) == run
    assert RunSpec.model_validate(run.model_dump(mode="json")) == run
    assert RunSpec.model_validate(json.loads(run.model_dump_json())).robust == tuple(chosen)


def test_a_run_has_none_unless_it_says_so() -> None:
    assert RunSpec.model_validate(spec()).robust == ()


BAD: list[dict[str, Any]] = [
    {},
    {"kind": "Median"},
    {"kind": "median", "bound": 1.0},
    {"kind": "median", "options": {"share": [1.0]}},
    {"kind": "median", "options": {"share": float("nan")}},
    {"bound": 1.0},
    {"kind": "norm-clip"},
    {"kind": "norm-clip", "bound": 1.0, "median_factor": 1.0},
    {"kind": "norm-clip", "bound": 1.0, "history": 1},
    {"kind": "norm-clip", "bound": 0.0},
    {"kind": "norm-clip", "bound": "1.0"},
    {"kind": "norm-clip", "bound": True},
    {"kind": "norm-clip", "bound": float("inf")},
    {"kind": "norm-clip", "median_factor": -1.0},
    {"kind": "norm-clip", "median_factor": 1.0, "history": -1},
    {"kind": "norm-clip", "median_factor": 1.0, "history": 1.0},
    {"kind": "norm-clip", "median_factor": 1.0, "minimum": 0.0},
    {"kind": "multi-krum"},
    {"kind": "multi-krum", "byzantine_share": 0.0},
    {"kind": "multi-krum", "byzantine_share": 0.5},
    {"kind": "multi-krum", "byzantine_share": 1},
    {"kind": "geometric-median", "bound": 1.0},
    {"kind": "cosine"},
    {"kind": "cosine", "minimum": -1.1},
    {"kind": "cosine", "minimum": float("nan")},
]


@pytest.mark.parametrize("value", BAD, ids=str)
def test_bad_filters_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ONE.validate_python(value)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(spec(robust=[value]))
    assert {error["loc"][0] for error in caught.value.errors()} == {"robust"}


@pytest.mark.parametrize("value", [None, "cosine", {"kind": "geometric-median"}, [{"kind": "geometric-median"}] * 9])
def test_only_a_list_of_at_most_eight_is_taken(value: Any) -> None:
    with pytest.raises(ValidationError):
        RunSpec.model_validate(spec(robust=value))
