"""Evaluation of several labels and of regression, against transformers' own losses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flexlora_client.training.data.examples import Example, Scored
from flexlora_client.training.evaluation.evaluate import measure
from flexlora_client.training.evaluation.own_metric import OwnMetric
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_shared.messages.runs import ProblemType, RunSpec, TrainingSpec
from tests.support.tiny_models import load_peft, make_run, make_slice, make_tokenizer

TEXTS = ("sings", "swims under the long, long bridge", "grows", "flies over it", "stands")
ALL = SampleSize(10, 10, 10)


def case(bert: Path, folder: Path, problem: ProblemType) -> tuple[RunSpec, Path, torch.Tensor]:
    """A run, a slice of it and the logits (texts, labels) that plain PEFT gives."""
    spec = make_run(bert, "SEQ_CLS", training=TrainingSpec(batch_size=2, max_length=64))
    served = make_slice(folder / "served", bert, spec)
    model, tokenizer = load_peft(bert, spec, served), make_tokenizer()
    with torch.no_grad():
        rows = [model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits for text in TEXTS]
    changed = spec.model.model_copy(update={"problem_type": problem})
    return spec.model_copy(update={"model": changed}), served, torch.cat(rows)


def test_several_labels(bert: Path, tmp_path: Path) -> None:
    spec, served, logits = case(bert, tmp_path, "multi-label")
    values = (logits > 0).float()
    values[0] = 1 - values[0]  # one row is wrong in every label
    examples: list[Example] = [Scored(text, tuple(row)) for text, row in zip(TEXTS, values.tolist(), strict=True)]
    found = measure(spec, served, examples, most=ALL, device="cpu").metrics
    assert found.keys() == {"loss", "accuracy", "macro_f1"}
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, values).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["accuracy"] == 0.8


def test_regression(bert: Path, tmp_path: Path) -> None:
    spec, served, logits = case(bert, tmp_path, "regression")
    examples: list[Example] = [Scored(t, tuple(row)) for t, row in zip(TEXTS, (logits + 0.5).tolist(), strict=True)]
    seen: list[Any] = []

    def own(predictions: Any, references: Any) -> float:
        seen.extend(zip(predictions, references, strict=True))
        return 1.0

    found = measure(spec, served, examples, most=ALL, device="cpu", own_metric=OwnMetric("own", own)).metrics
    expected = {"loss": 0.25, "mse": 0.25, "mae": 0.5, "pearson": 1.0, "own": 1.0}
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(seen) == len(TEXTS)
    assert all(truth == pytest.approx([value + 0.5 for value in said], abs=1e-3) for said, truth in seen)
