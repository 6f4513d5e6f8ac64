"""The geometric median by smoothed Weiszfeld (RFA: Pillutla, Kakade, Harchaoui 2022, arXiv 1912.13445).

It minimises sum of p_i |D_i - v| and moves little while less than half of the weight is hostile. Every iterate is a convex
combination v = sum of b_i D_i, so with K the inner products |D_i - v|^2 = K_ii - 2 (K b)_i + b^T K b, and
the new coefficients, b_i proportional to p_i / max(nu, |D_i - v|), are simply other weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import torch
from torch import Tensor

from flexlora_server.aggregation.filters.rule import Verdict, unclipped
from flexlora_server.aggregation.geometry.update_geometry import Geometry

_SMOOTHING = 1e-6  # nu, relative to a typical distance between two changes
_CONVERGED = 1e-10  # in the coefficients
_ITERATIONS = 1000  # near the breakdown point each one gains little; usually a dozen are enough
_NOTE_BELOW = 0.5  # a note is added below this share of the weight by examples


@dataclass(frozen=True)
class GeometricMedian:
    """The coefficients of the geometric median become the weights."""

    name = "geometric-median"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        coefficients, distances = weiszfeld(weights, geometry.inner)
        middle = median_low(distances)
        notes = [
            f"counts {new:.2g} instead of {old:.2g} in the geometric median "
            f"(distance {distance:.3g}, the median distance is {middle:.3g})"
            if new < _NOTE_BELOW * old
            else ""
            for old, new, distance in zip(weights, coefficients, distances, strict=True)
        ]
        return unclipped(coefficients, notes)


def weiszfeld(weights: Sequence[float], inner: Tensor) -> tuple[list[float], list[float]]:
    """The coefficients of the geometric median, and the distance of every change to it.

    Of changes that are all the same, or of two with the same weight, the coefficients are the weights. Of two with different
    weights the heavier one is the median, but for the smoothing; so it is of any number where one has over half of the weight.
    nu is the same in all iterations, so that they approach the minimum of one function, however many there are; it follows
    the distances within the majority, not those from the mean, which a single far change can make as long as it likes.
    """
    p = torch.tensor(weights, dtype=torch.float64)
    b = p / p.sum()
    nu = max(_SMOOTHING * _typical_distance(inner), torch.finfo(torch.float64).tiny)
    for _ in range(_ITERATIONS):
        closeness = p / _distances(inner, b).clamp(min=nu)
        closeness = closeness / closeness.max()  # so that no sum overflows
        old, b = b, closeness / closeness.sum()
        if float((b - old).abs().max()) < _CONVERGED:
            break
    coefficients: list[float] = b.tolist()
    final: list[float] = _distances(inner, b).tolist()
    return coefficients, final


def _typical_distance(inner: Tensor) -> float:
    """The median change's median distance to the others; 0 where there are none."""
    squares = inner.diagonal()
    between = (squares + squares[:, None] - 2 * inner).clamp(min=0).sqrt().fill_diagonal_(torch.nan)
    return float(between.nanmedian(dim=1).values.nanmedian().nan_to_num())


def _distances(inner: Tensor, b: Tensor) -> Tensor:
    projected = inner @ b
    return (inner.diagonal() - 2 * projected + b @ projected).clamp(min=0).sqrt()
