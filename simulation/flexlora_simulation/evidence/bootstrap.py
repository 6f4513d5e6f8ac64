"""Intervals of a mean of paired differences, by resampling the seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

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
    low, high = torch.quantile(x[_picked(len(x))].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(x.mean()), low, high)


@cache
def _picked(count: int) -> torch.Tensor:
    """Which of so many values each resample has, the same every time; (resamples, count)."""
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))


def paired(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The interval of the differences, seed by seed."""
    return interval([one - other for one, other in zip(values, others, strict=True)])
