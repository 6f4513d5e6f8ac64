"""A filter that another package brings: found by its entry point, checked when a run is defined, applied to its rounds."""

from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import pytest

from flexlora_server.aggregation.filters import plugin
from flexlora_server.aggregation.filters.plugin import check_filter
from flexlora_server.errors import AggregationError, PluginUnusable
from flexlora_shared import plugins
from flexlora_shared.messages.robust import CustomFilter
from flexlora_shared.plugins import FILTER_GROUP
from tests.support.databases import ON_SQLITE
from tests.support.kit import Served, encode, spec, tensors
from tests.support.plugins import install

OFFER = """
from flexlora_server.aggregation.filters.plugin import FilterPlugin
from flexlora_shared.messages.base import Message

class Options(Message):
    minimum: float

lightest = FilterPlugin("drop-light", module="drop_light", options=Options)
elsewhere = FilterPlugin("elsewhere", module="nowhere_at_all", options=Options)
"""
RULE = """
from flexlora_server.aggregation.filters.rule import keeping

class DropLight:
    name = "drop-light"

    def __init__(self, minimum):
        self.minimum = minimum

    def apply(self, weights, geometry, past_norms):
        keep = [weight >= self.minimum for weight in weights]
        return keeping(weights, keep, ["" if kept else "too light" for kept in keep])

def rule(options):
    return DropLight(options.minimum)
"""


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = {
        "drop-light": "filter_offer:lightest",
        "elsewhere": "filter_offer:elsewhere",
        "misnamed": "filter_offer:lightest",
    }
    install(monkeypatch, tmp_path, "filters", FILTER_GROUP, offers, filter_offer=OFFER, drop_light=RULE)


def defined(kind: str, **options: Any) -> CustomFilter:
    return CustomFilter.model_validate({"kind": kind, "options": options})


@ON_SQLITE
def test_a_round_is_filtered_by_it(coordinator: Served) -> None:
    robust = [{"kind": "drop-light", "options": {"minimum": 0.2}}]
    run = coordinator.run(min_clients=2, min_updates=2, robust=robust)
    two = [coordinator.enroll() for _ in "ab"]
    for participant in two:
        participant.declare("run", 2, 90)
    for seed, (participant, examples) in enumerate(zip(two, (90, 10), strict=True)):
        participant.upload(participant.task("run"), encode(tensors(run, 2, seed=seed)), examples=examples)
    assert coordinator.work() == 1
    detail = coordinator.operator.expect(200, "GET", "/v1/runs/run/rounds/1")
    updates = [participant["update"] for participant in detail["participants"]]
    assert sorted((update["weight"], update["notes"]) for update in updates) == [(0.0, ["too light"]), (1.0, [])]


@ON_SQLITE
def test_a_run_waits_for_a_package_that_is_gone(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when the run was defined; the round is given back, and no attempt at it counts."""
    run = coordinator.run(robust=[{"kind": "drop-light", "options": {"minimum": 0.0}}])
    participant = coordinator.enroll()
    participant.declare("run", 2)
    participant.upload(participant.task("run"), encode(tensors(run, 2)))
    plugin._offered.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "entry_points", lambda **_: EntryPoints())
        with pytest.raises(PluginUnusable, match="there is no filter 'drop-light'"):
            coordinator.worker.step()
    summary = coordinator.round("run", 1)["summary"]
    assert (summary["state"], summary["failures"]) == ("AGGREGATING", 0)
    coordinator.clock.advance(60)
    assert coordinator.work() == 1
    assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"


@ON_SQLITE
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "median"}, "there is no filter 'median': choose one of cosine, drop-light"),
        ({"kind": "drop-light"}, "does not take these options: minimum: Field required"),
        ({"kind": "drop-light", "options": {"minimum": "much"}}, "minimum: Input should be a valid number"),
        ({"kind": "drop-light", "options": {"minimum": 0.1, "more": 1}}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_run_that_it_cannot_filter_is_refused(coordinator: Served, given: dict[str, Any], sentence: str) -> None:
    problem = coordinator.operator.problem("invalid-run", "POST", "/v1/runs", json=spec(robust=[given]))
    assert sentence in problem["detail"]


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match="'elsewhere' cannot be used: there is no module nowhere_at_all"):
        check_filter(defined("elsewhere", minimum=1.0))
    with pytest.raises(AggregationError, match="'misnamed' offers a filter of kind 'drop-light'"):
        check_filter(defined("misnamed", minimum=1.0))
