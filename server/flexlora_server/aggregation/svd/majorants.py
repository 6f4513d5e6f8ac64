"""Polynomials above the hinge max(0, u - c) on [0, 1], for many c at once, and polynomials above their squares.

f(u) = u g(u) with g a polynomial: f(0) = 0, so that the many eigenvalues near 0 cost little. Each g minimises its integral
against a weight u^power by a log-barrier method on a grid of constraints; what is violated between the points is bounded by the
inequality of Ehlich and Zeller (1964, Math. Z. 86): a polynomial of degree N that lies in [lo, hi] at K > N Chebyshev points
of an interval lies in the interval of the same centre that is 1 / cos(pi N / 2K) times as wide. A constant added to g repairs it.
So f is above the hinge however well the method has converged, and it depends on the degree alone, not on any data.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

HINGES = tuple(x / 40 for x in range(6, 38, 2))  # c
POWERS = (0.0, 1.0)  # of the weight: spectra that fall, and those that stay near the largest value
COUNT = len(HINGES) * len(POWERS)
_ROUNDING = 1e-10  # of evaluating a polynomial with small coefficients in float64, and more
_STEPS, _SHARPEST = 40, 1e5  # of the barrier method; the inverse of its last barrier


@dataclass(frozen=True)
class Majorants:
    """`COUNT` polynomials f(u) = u g(u) >= max(0, u - c), and as many s(u) = u h(u) >= f(u)^2, on [0, 1].

    c: (COUNT,). g, h: (COUNT, degree) coefficients of the Chebyshev polynomials T_j(2u - 1).
    f_most, s_most: (COUNT,) upper bounds on f and s.
    """

    c: Tensor
    g: Tensor
    h: Tensor
    f_most: Tensor
    s_most: Tensor

    def sums(self, u: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sums of f and of s over points u (n,): (COUNT,) each."""
        weighted = (weights * u) @ _chebyshev(u, self.g.shape[1])
        return self.g @ weighted, self.h @ weighted


@lru_cache(maxsize=32)
def majorants(degree: int) -> Majorants:
    """Of this degree, at least 2."""
    c = torch.tensor(HINGES, dtype=torch.float64).repeat(len(POWERS))
    powers = torch.tensor(POWERS, dtype=torch.float64).repeat_interleave(len(HINGES))
    points, fine = _points(c, 4 * degree), _points(c, 16 * degree)
    weights = _integrals(powers, degree)
    g = _least_above(_chebyshev(points, degree), (1 - c[:, None] / points).clamp(min=0), weights)
    left, right = fine.chunk(2, dim=1)
    below = _least(_values(g, left), degree)
    above = _least(right * _values(g, right) - right + c[:, None], degree) / c
    g[:, 0] += (-torch.minimum(below, above)).clamp(min=0) + _ROUNDING
    squares = points * _values(g, points).square()
    h = _least_above(_chebyshev(points, degree), squares, weights)
    even = _points(torch.full_like(c, 0.5), 32 * degree)
    missing = torch.stack(
        [_least(_values(h, part) - part * _values(g, part).square(), 2 * degree) for part in even.chunk(2, dim=1)]
    )
    h[:, 0] += (-missing.amin(dim=0)).clamp(min=0) + _ROUNDING
    most = [
        torch.stack([-_least(-part * _values(x, part), degree) for part in even.chunk(2, dim=1)]).amax(dim=0)
        for x in (g, h)
    ]
    return Majorants(c, g, h, *most)


def _points(c: Tensor, count: int) -> Tensor:
    """(len(c), 2 count): as many Chebyshev points of [0, c] and of [c, 1]."""
    unit = (torch.cos((torch.arange(count, dtype=torch.float64) + 0.5) * math.pi / count) + 1) / 2
    return torch.cat([c[:, None] * unit, c[:, None] + (1 - c[:, None]) * unit], dim=1)


def _chebyshev(u: Tensor, count: int) -> Tensor:
    """(..., count): T_j(2u - 1) for j < count."""
    z = (2 * u - 1).clamp(-1, 1)
    return torch.cos(torch.arange(count, dtype=torch.float64) * torch.acos(z)[..., None])


def _values(coefficients: Tensor, u: Tensor) -> Tensor:
    return (_chebyshev(u, coefficients.shape[1]) @ coefficients[..., None])[..., 0]


def _least(values: Tensor, degree: int) -> Tensor:
    """A lower bound on polynomials of this degree on an interval, from their values (..., K) at its Chebyshev points."""
    low, high = values.amin(dim=1), values.amax(dim=1)
    return (low + high) / 2 - (high - low) / 2 / math.cos(math.pi * degree / (2 * values.shape[1]))


def _integrals(powers: Tensor, count: int) -> Tensor:
    """(len(powers), count): the means of T_j(2u - 1) under the weight u^power, by Gauss's midpoints."""
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    weights = u ** powers[:, None]
    return (weights / weights.sum(dim=1, keepdim=True)) @ _chebyshev(u, count)


def _least_above(basis: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Coefficients (n, j) of basis (n, K, j) that stay above targets (n, K) at every point and nearly minimise weights (n, j).

    Newton steps on the logarithmic barrier, none beyond 0.9 of the way to it, so that all constraints hold whenever it ends.
    """
    a = torch.zeros_like(weights)
    a[:, 0] = 1.5 * targets.amax(dim=1) + 1e-3
    for step in range(_STEPS):
        sharpness = _SHARPEST ** min(1.0, (step + 1) / (_STEPS - 5)) / (targets.amax(dim=1, keepdim=True) + 1e-3)
        slack = (basis @ a[..., None])[..., 0] - targets
        scaled = basis / slack[..., None]
        towards = torch.linalg.solve(scaled.mT @ scaled, scaled.sum(dim=1) - sharpness * weights)
        shrinking = -(scaled @ towards[..., None])[..., 0].amin(dim=1, keepdim=True)
        a = a + towards * (0.9 / shrinking.clamp(min=0.9))
    return a
