"""Deflated block Lanczos: truncation and certificate where the spectrum is flat around the requested rank.

There nothing separates direction r from the next, and a bound that charges each of many flat directions the largest value
outside (`certificate`) is loose however long one iterates. Here the head, the p directions well above the r-th, is split off;
outside it a block Krylov space from b Gaussian vectors finds the others and bounds the sum of what they can be.

Theorem. Let Q (n, p) be orthonormal, M = W W^T (or W^T W), T = Q^T M Q, C = (1 - Q Q^T) M Q, and D the part of M outside Q with
the eigenvalues mu_1 >= mu_2 >= ...; let mu >= mu_1. Then for r > p and any tau_j > mu

    sum of sigma_j^2 over j <= r
        <=  sum over j <= p of max(lambda_j(T + C^T C / (tau_j - mu)), tau_j)  +  sum over i <= r - p of mu_i.

Proof: the first p as in `certificate`; for the others sigma_(p+i)^2 <= mu_i by Cauchy's interlacing, D being M compressed to a
subspace of codimension p. `tail_bounds` bounds mu_1 and the second sum from above and the trace of D from below. They hold
together with probability 1 - `FAILURE_PROBABILITY`, at whichever of the `DEPTHS` the iteration stops, over Gaussian vectors drawn
after Q was fixed. Their seed depends on all the data, so that nobody who sends a part of it can choose it to fit.

Rounding is counted. Products with a block of columns X are assumed to be wrong by `PRODUCT_ROUNDING` size |X| at most, size the
larger of W's norm and of its terms' if they were uncorrelated. This is measured, not proved: a test finds less than half of it,
of a thousand equal uploads too; the worst case over all signs of rounding would be useless. And rounding, which depends on the
Gaussian vectors, is taken not to conspire with them. Small matrices are in float64, whose rounding is far below. Then with
unit = `PRODUCT_ROUNDING` size

- the images of the l = p + m b basis vectors and the products with the p head images (orthogonal, as Q holds Ritz vectors) are
  exact for a matrix W' with |W' - W| <= delta = unit sqrt(l + p): a term of rank one, of the size of its error, corrects each;
- the Krylov recurrence is exact for M' with |M' - W' W'^T| <= delta_M = sqrt(2) unit (|images| + sqrt(p sum |C_j|^2 / T_jj)),
  which moves a sum of r eigenvalues by sqrt(r) delta_M at most, and the trace by sqrt(2 m b) delta_M.

A certificate c for W', whose smallest error is at least e, is one of c + (1 + c) delta / (e - delta) for W: both errors move by
delta at most.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.certificate import FAILURE_PROBABILITY, Product, max_energy
from flexlora_server.aggregation.svd.small_matrices import eigh, orthonormal
from flexlora_server.aggregation.svd.tail_bounds import TailBounds, tail_bounds

HEAD = 3.0  # energies above so many times the r-th belong to the head
MAX_HEAD_SHARE = 0.8  # of the rank; beyond it the spectrum falls too fast to gain by this
MAX_SLACK_SHARE = 0.2  # of the allowed error that the head's residual may take
BLOCK_VECTORS = 56
MIN_RANK = 48  # below it the iterated block is narrower than those of the Krylov space, and cheaper to iterate
DEPTHS = (4, 5, 6, 7, 8, 10, 12)  # blocks of the Krylov space at which a certificate is tried
PRODUCT_ROUNDING = {torch.float32: 1.5e-7, torch.float64: 1e-14}


@dataclass(frozen=True)
class Truncation:
    """Q (n, r) orthonormal and its images (., r): M's leading Ritz vectors; W's energy, estimated; the certified ratio."""

    Q: Tensor
    images: Tensor
    energy: float
    ratio: float


@dataclass(frozen=True)
class Request:
    """Which truncation is wanted: its rank, the ratio to certify, the size of W for its rounding, the products' dtype."""

    rank: int
    bound: float
    size: float
    dtype: torch.dtype


def head_size(theta: Tensor, rank: int) -> int:
    """How many of the Ritz values (l,), descending, are the head; 0 where the spectrum is not flat at the rank."""
    if len(theta) < rank or rank < MIN_RANK:
        return 0
    p = max(1, int((theta > HEAD * theta[rank - 1]).sum()))
    return p if p <= MAX_HEAD_SHARE * rank else 0


def head_slack(theta: Tensor, leaks: Tensor, rth: float) -> Tensor:
    """About what the certificate adds for each direction of the head: theta and leaks |C_j|^2 (p,), `rth` the r-th Ritz value."""
    return leaks / (theta - HEAD / 2 * rth).clamp(min=rth)


class DeflatedLanczos:
    """From the Ritz vectors Q (n, l) of a subspace, their images and Ritz values `theta` (l,), the first p of them the head."""

    def __init__(
        self, ritz: tuple[Tensor, Tensor, Tensor], p: int, products: tuple[Product, Product], generator: torch.Generator
    ) -> None:
        Q, images, self._theta = ritz
        self._p, self._n = p, Q.shape[0] - p
        self._b = min(BLOCK_VECTORS, max(16, self._n // 8))
        self._forth, self._back = products
        head = self._basis = Q[:, :p]
        self._images, self._gram = images[:, :p], torch.diag(self._theta[:p])
        G = torch.randn(Q.shape[0], self._b, generator=generator, dtype=torch.float64).to(Q.device)
        block, self._to_vectors = orthonormal(self._outside(self._outside(G)))
        self._add(block)
        both = self._back(
            self._images
        ).double()  # what the head needs beside what the next block needs: one wide product
        C = both[:, :p] - head @ (head.mT @ both[:, :p])
        self._CtC, self._next = C.mT @ C, both[:, p:]

    def run(self, wanted: Request, lost: float) -> Truncation | None:
        """The certified truncation, or None; `lost` is about the energy that a truncation loses."""
        slack = head_slack(self._theta[: self._p], self._CtC.diagonal(), float(self._theta[wanted.rank - 1]))
        if float(slack.sum()) > MAX_SLACK_SHARE * (wanted.bound**2 - 1) * lost:
            return None
        for depth in DEPTHS:
            while self._steps < depth:
                if self._basis.shape[1] + self._b > self._basis.shape[0]:
                    return None
                self._extend()
            found = self._certified(wanted)
            if found is not None:
                return found
        return None

    @property
    def columns(self) -> int:
        """That were multiplied by the stack so far."""
        return self._p + self._b * 2 * self._steps

    @property
    def _steps(self) -> int:
        return (self._basis.shape[1] - self._p) // self._b

    def _extend(self) -> None:
        block = self._next if self._steps == 1 else self._back(self._images[:, -self._b :]).double()
        for _ in range(2):
            block = orthonormal(self._outside(block))[0]
        self._add(block)

    def _add(self, block: Tensor) -> None:
        images = self._forth(block).double()
        self._gram = _bordered(self._gram, self._images.mT @ images, images.mT @ images)
        self._basis, self._images = torch.cat([self._basis, block], dim=1), torch.cat([self._images, images], dim=1)

    def _outside(self, X: Tensor) -> Tensor:
        return X - self._basis @ (self._basis.mT @ X)

    def _certified(self, wanted: Request) -> Truncation | None:
        """The truncation by Rayleigh-Ritz in the head and the Krylov space, if its error is certified to what is wanted."""
        p, count = self._p, wanted.rank - self._p
        values, vectors = eigh(self._gram[p:, p:])
        values, weights = values.clamp(min=0), (self._to_vectors.mT @ vectors[: self._b]).square().sum(dim=0) / self._b
        chance = FAILURE_PROBABILITY / len(DEPTHS)
        tail = tail_bounds(values.cpu(), weights.cpu(), self._n, self._b, self._steps, count, chance)
        bound = self._bound(wanted, tail, float(values.sum()))
        seen = float(self._theta[:p].sum() + values[:count].sum())  # without what rotating both together gains
        if bound.ratio(seen) > wanted.bound:
            return None
        kept, rotation = eigh(self._gram)
        ratio, rotation = bound.ratio(float(kept[: wanted.rank].sum())), rotation[:, : wanted.rank]
        energy = float(self._theta[:p].sum() + weights @ values)
        return Truncation(self._basis @ rotation, self._images @ rotation, energy, ratio)

    def _bound(self, wanted: Request, tail: TailBounds, spread: float) -> "_Bound":
        p, columns = self._p, self._basis.shape[1] - self._p
        theta, leaks = self._theta[:p], self._CtC.diagonal()
        unit = PRODUCT_ROUNDING[wanted.dtype] * wanted.size
        delta_M = math.sqrt(2) * unit * (math.sqrt(spread) + math.sqrt(p * float((leaks / theta).sum())))
        most = max_energy(torch.diag(theta), self._CtC, p, tail.largest) + tail.top + math.sqrt(wanted.rank) * delta_M
        total = float(theta.sum()) + tail.energy - math.sqrt(2 * columns) * delta_M
        return _Bound(most, total, unit * math.sqrt(2 * p + columns))


@dataclass(frozen=True)
class _Bound:
    """most: what a truncation of W' can keep; total: at most its energy; delta: how far W may be from it."""

    most: float
    total: float
    delta: float

    def ratio(self, kept: float) -> float:
        """The certificate for W of a truncation that keeps `kept` of W'."""
        best = self.total - max(self.most, kept)
        if not best > self.delta**2:
            return math.inf
        ratio = math.sqrt((self.total - kept) / best)
        return ratio + (1 + ratio) * self.delta / (math.sqrt(best) - self.delta)


def _bordered(gram: Tensor, beside: Tensor, corner: Tensor) -> Tensor:
    return torch.cat([torch.cat([gram, beside], dim=1), torch.cat([beside.mT, corner], dim=1)])
