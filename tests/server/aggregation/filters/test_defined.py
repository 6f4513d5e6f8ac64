"""Every filter that a run can be defined with has a rule, with the numbers of its definition."""

from typing import Any

from flexlora_server.aggregation.filters.cosine import Cosine
from flexlora_server.aggregation.filters.from_definition import rules
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import spec

DEFINED: list[dict[str, Any]] = [
    {"kind": "norm-clip", "bound": 10},
    {"kind": "norm-clip", "median_factor": 1.5, "history": 5},
    {"kind": "multi-krum", "byzantine_share": 0.2},
    {"kind": "geometric-median"},
    {"kind": "cosine", "minimum": -0.1},
]


def test_rules_are_what_the_run_defines_in_its_order() -> None:
    run = RunSpec.model_validate(spec(robust=DEFINED))
    made = rules(run.robust)
    assert made == (FixedBound(10.0), RunningBound(1.5, 5), MultiKrum(0.2), GeometricMedian(), Cosine(-0.1))
    assert [rule.name for rule in made] == [one["kind"] for one in DEFINED]
    assert rules(RunSpec.model_validate(spec()).robust) == ()
