"""The benchmark of the simulation compares the same work: what plain PEFT trains is what the participants train."""

import json
import sys
from typing import Any

import pytest
from transformers import LlamaConfig

from benchmarks import simulation


def tiny(**given: Any) -> LlamaConfig:
    """The benchmark's model, smaller."""
    return LlamaConfig(**given | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2})


def test_both_sides_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--ranks", "2", "3", "--clients", "2", "--steps", "2", "--batch", "2", "--tokens", "40", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["simulation", *given, "--json"])
    monkeypatch.setattr(simulation, "LlamaConfig", tiny)
    simulation.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["largest_difference"] < 1e-5, "the same work"
    assert figures["largest_change"] > 1e-4, "and some"
    assert figures["whole_ratios"] == [figures["whole_ratio_median"]]
    assert figures["whole_ratio_median"] > figures["training_ratio_median"] > 0
