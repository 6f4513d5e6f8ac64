"""The reference for a round: the energy and singular values of its W, in float64 and by code independent of the engine."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from flexlora_server.aggregation.svd.stack import Stack

GROUP = 4096  # columns of the stack that are multiplied at once
NOISE = 1e-7  # of the largest singular value: the root of a square's rounding


class Optimum:
    """The best truncation of a stack's W (d, k) to `rank`, and how others compare with it."""

    def __init__(self, stack: Stack, rank: int) -> None:
        d, R, k = stack.shape
        self._stack = stack
        self._W = _dense(stack) if min(d, k) < R else None
        values, self._energy = _squares(stack) if self._W is None else _squares_of(self._W)
        leading = values[:rank].clamp(min=0)
        self.sigma = pad(leading.sqrt(), (0, rank - len(leading)))  # a stack of fewer columns has no more
        self._error = self._energy - float(leading.sum())

    def error_ratio(self, US: Tensor, Vt: Tensor) -> float | None:
        """|W - US Vt|_F over the smallest possible at this rank; None where nothing is lost."""
        if not self._error > 1e-12 * self._energy:
            return None
        US, Vt = US.double(), Vt.double()
        norm = float(((US.mT @ US) * (Vt @ Vt.mT)).sum())
        squared = self._energy - 2 * self._inner(US, Vt) + norm
        return math.sqrt(max(0.0, squared) / self._error)

    def values_error(self, S: Tensor) -> float | None:
        """The largest relative difference of S from the leading singular values that are not 0; None if all are."""
        exact = self.sigma[: len(S)]
        some = exact > NOISE * exact[0]
        return float(((S.double() - exact).abs() / exact)[some].max()) if bool(some.any()) else None

    def _inner(self, US: Tensor, Vt: Tensor) -> float:
        """<W, US Vt>."""
        if self._W is not None:
            return float(((self._W @ Vt.mT) * US).sum())
        parts = (((t.B.double().mT @ US) * (t.A.double() @ Vt.mT)).sum() * t.scale for t in self._stack.terms)
        return float(sum(parts))


def _squares(stack: Stack) -> tuple[Tensor, float]:
    """sigma^2 descending, of K = L^T (B^T B) L where L L^T = A A^T, and |W|^2 = tr(K)."""
    B = torch.cat([term.scale * term.B.double() for term in stack.terms], dim=1)
    A = torch.cat([term.A.double() for term in stack.terms])
    of_B, of_A = B.mT @ B, A @ A.mT
    L = torch.linalg.cholesky(of_A)
    return torch.linalg.eigvalsh(L.mT @ of_B @ L).flip(0), float((of_B * of_A).sum())


def _squares_of(W: Tensor) -> tuple[Tensor, float]:
    gram = W @ W.mT if W.shape[0] < W.shape[1] else W.mT @ W
    return torch.linalg.eigvalsh(gram).flip(0), float(gram.trace())


def _dense(stack: Stack) -> Tensor:
    d, _, k = stack.shape
    W, some, columns = torch.zeros(d, k, dtype=torch.float64), [], 0
    for index, term in enumerate(stack.terms):
        some.append(term)
        columns += term.A.shape[0]
        if columns >= GROUP or index == len(stack.terms) - 1:
            left = torch.cat([t.scale * t.B.double() for t in some], dim=1)
            W.addmm_(left, torch.cat([t.A.double() for t in some]))
            some, columns = [], 0
    return W
