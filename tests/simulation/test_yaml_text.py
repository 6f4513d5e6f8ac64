"""Experiments are read as YAML 1.2."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flexlora_simulation.experiment import load
from flexlora_simulation.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on: [off, yes, no]", {"on": ["off", "yes", "no"]}),
        ("[true, False, null, ~]", [True, False, None, None]),
        ("[1e-3, 2E4, 1.5, .5, -3., 1.5e+2, +.inf]", [0.001, 20000.0, 1.5, 0.5, -3.0, 150.0, float("inf")]),
        ("[1, -2, 0x10]", [1, -2, 16]),
        ("[e3, 1e, ., 1-2, '1e3', truely]", ["e3", "1e", ".", "1-2", "1e3", "truely"]),
    ],
)
def test_plain_words_and_numbers(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert read == value
    if isinstance(value, list):
        assert list(map(type, read)) == list(map(type, value))


def test_objects_of_python_are_refused() -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_an_experiment_says_on_what_it_is_measured(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "name: e\nworkload: {name: banking77}\nrun: {rounds: 1, training: {learning_rate: 1e-3}}\nevaluation:\n  on: [unseen]\n"
    )
    experiment = load(tmp_path / "e.yaml")
    assert experiment.evaluation.on == ("unseen",)
    assert experiment.run == {"rounds": 1, "training": {"learning_rate": 0.001}}
