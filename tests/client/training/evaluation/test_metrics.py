"""Figures of predictions, against scikit-learn 1.7 and SciPy 1.15 on the same ones and against values by hand."""

import pytest
import torch

from flexlora_client.training.evaluation import metrics


def test_classes() -> None:
    predicted, expected = torch.tensor([0, 1, 2, 2, 0, 3, 1, 0]), torch.tensor([0, 2, 2, 2, 1, 0, 1, 0])
    assert metrics.accuracy(predicted, expected) == 0.625
    assert metrics.macro_f1(predicted, expected) == pytest.approx(0.4916666667)  # sklearn's f1_score, average="macro"
    assert metrics.macro_f1(predicted + 5, expected + 5) == pytest.approx(0.4916666667)  # classes that never occur


def test_several_labels() -> None:
    predicted = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 1]]).bool()
    expected = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 1]]).bool()
    assert metrics.accuracy(predicted, expected) == 0.25  # sklearn's accuracy_score: all labels of a row
    assert metrics.macro_f1_of_labels(predicted, expected) == pytest.approx(0.4888888889)  # the second never occurs: 0


def test_tags() -> None:
    predicted, expected = torch.tensor([0, 1, 1, 0, 2, 2, 0, 1]), torch.tensor([0, 1, 2, 0, 2, 0, 1, 1])
    assert metrics.tag_f1(predicted, expected, outside=0) == pytest.approx(
        0.6
    )  # f1_score(labels=[1, 2], average="micro")
    nothing = torch.zeros(3, dtype=torch.long)
    assert metrics.tag_f1(nothing, nothing, outside=0) == 0


def test_numbers() -> None:
    predicted, expected = torch.tensor([[1.5], [2.0], [-1.0], [4.0]]), torch.tensor([[1.0], [2.5], [0.0], [3.0]])
    found = metrics.regression(predicted, expected)
    assert found == pytest.approx({"mse": 0.625, "mae": 0.75, "pearson": 0.9344046820})
    constant = metrics.regression(torch.ones(4, 1), expected)
    assert constant.keys() == {"mse", "mae"}  # no correlation with what does not vary
    both = metrics.regression(predicted.repeat(1, 2), torch.cat([expected, -expected], dim=1))
    assert both["pearson"] == pytest.approx(0.0, abs=1e-6)
