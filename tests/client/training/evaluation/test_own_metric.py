"""A participant's own metric: found by name, and its numbers checked."""

from collections.abc import Sequence
from typing import Any

import pytest

from flexlora_client.errors import PluginError
from flexlora_client.training.evaluation.own_metric import OwnMetric, load_metric

HERE = "tests.support.metrics"


def test_it_is_found_by_name() -> None:
    assert load_metric(f"{HERE}:same_length")(["a", "bb"], ["c", "d"]) == {"same_length": 0.5}
    assert load_metric(f"{HERE}:lengths")(["a", "bb"], ["c", "d"]) == {"longest": 2.0, "shortest": 1.0}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("same_length", "not of the form"),
        (":same_length", "not of the form"),
        (f"{HERE}:SameLength", "in lower case"),
        (f"{HERE}:missing", "names no function"),
        ("no.such.module:f", r"does not import \(ModuleNotFoundError"),
    ],
)
def test_names_that_are_none(name: str, reason: str) -> None:
    with pytest.raises(PluginError, match=reason):
        load_metric(name)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("high", "returned 'high' for mine"),
        (None, "must return a number"),
        ({"Recall": 1.0}, "names a figure 'Recall'"),
    ],
)
def test_what_it_returns_must_be_numbers(returned: object, reason: str) -> None:
    def function(predictions: Sequence[Any], references: Sequence[Any]) -> object:
        return returned

    with pytest.raises(PluginError, match=reason):
        OwnMetric("mine", function)([], [])
