"""Intervals of a mean of paired differences, by resampling the seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean, and between which two it lies with 95 %; both the mean itself where there is one value only."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def interval(values: Sequence[float]) -> Interval:
    """The percentile bootstrap of the mean (Efron 1979): of few values it is somewhat too narrow."""
    x = torch.tensor(values, dtype=torch.float64)
    picked = torch.randint(len(x), (RESAMPLES, len(x)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(x[picked].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(x.mean()), low, high)


def paired(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The interval of the differences, seed by seed."""
    return interval([one - other for one, other in zip(values, others, strict=True)])
