"""Figures of predictions against references: accuracy, F1, errors and correlation, by their textbook formulae.

Written out because they are a few lines each and scikit-learn, which the tests' reference values come from, weighs more than
the rest of the agent but PyTorch.
"""

import torch
from torch import Tensor


def accuracy(predicted: Tensor, expected: Tensor) -> float:
    """Share of rows that are right in every column; (n,) or (n, labels)."""
    right = predicted == expected
    return float(right.reshape(len(right), -1).all(dim=1).double().mean())


def macro_f1(predicted: Tensor, expected: Tensor) -> float:
    """Mean F1 of the classes that occur, predicted or expected; both (n,), class indices."""
    classes = torch.unique(torch.cat([predicted, expected]))
    return _mean_f1(predicted[:, None] == classes, expected[:, None] == classes)


def macro_f1_of_labels(predicted: Tensor, expected: Tensor) -> float:
    """Mean F1 of all labels; both (n, labels) bool. A label that never occurs has F1 0."""
    return _mean_f1(predicted, expected)


def tag_f1(predicted: Tensor, expected: Tensor, outside: int) -> float:
    """F1 of the words that are, or should be, tagged other than `outside` ("O"), tag by tag; both (words,)."""
    hits = ((predicted == expected) & (expected != outside)).sum()
    total = (predicted != outside).sum() + (expected != outside).sum()
    return float(2 * hits / total) if total else 0.0


def regression(predicted: Tensor, expected: Tensor) -> dict[str, float]:
    """`mse`, `mae` and Pearson's r (`pearson`, mean of the columns for which it is defined, else absent); (n, values)."""
    predicted, expected = predicted.double(), expected.double()
    error = predicted - expected
    figures = {"mse": float((error**2).mean()), "mae": float(error.abs().mean())}
    centred = predicted - predicted.mean(dim=0), expected - expected.mean(dim=0)
    norms = centred[0].norm(dim=0) * centred[1].norm(dim=0)
    defined = norms > 0
    if defined.any():
        figures["pearson"] = float(((centred[0] * centred[1]).sum(dim=0)[defined] / norms[defined]).mean())
    return figures


def _mean_f1(predicted: Tensor, expected: Tensor) -> float:
    """Mean over the columns of 2 TP / (predicted + expected), 0 where both are none; (n, classes) bool."""
    hits, total = (predicted & expected).sum(dim=0), predicted.sum(dim=0) + expected.sum(dim=0)
    return float((2 * hits / total.clamp(min=1)).double().mean())
