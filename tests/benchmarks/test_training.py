"""The benchmark of local training compares the same work: what it trains with plain PEFT is what the agent trains."""

import json
import sys
from typing import Any

import pytest
from transformers import LlamaConfig

from benchmarks import training


def tiny(**given: Any) -> LlamaConfig:
    """The benchmark's model, smaller."""
    return LlamaConfig(**given | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2})


def test_both_sides_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--examples", "2", "--batch", "2", "--rank", "2", "--repetitions", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["training", *given])
    monkeypatch.setattr(training, "LlamaConfig", tiny)
    training.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["tokens"] > 100
    assert figures["largest_difference"] < 1e-5, "the same work"
    assert figures["time_ratios"] == [figures["time_ratio_median"]]
    assert figures["agent_tokens_per_second"] > 0
    assert figures["plain_tokens_per_second"] > 0
