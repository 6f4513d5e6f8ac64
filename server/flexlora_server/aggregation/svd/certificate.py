"""An upper bound on the energy that any rank-r truncation can keep, from a subspace. It fails with `FAILURE_PROBABILITY` at most.

Let Q (n, l) be orthonormal, M = W W^T or W^T W (n, n), T = Q^T M Q, C = (1 - QQ^T) M Q what M leads out of Q, and D the part
of M outside Q with largest eigenvalue mu. For every tau > mu, M is at most blockdiag(T + C^T C / (tau - mu), tau) in the
Loewner order (the off-diagonal blocks by completing the square), so each j may choose its tau in

    sigma_j^2  <=  max(lambda_j(T + C^T C / (tau - mu)), tau),    and the sum over j <= r bounds what can be kept.

It is quadratic in the residual C, over the gap between sigma_j^2 and mu, and loose by the error of mu where there is no gap.
mu is not known; a block Krylov iteration from Gaussian vectors bounds it from above: of b starting vectors, the combination
that lies best has tan^2 of its angle to the leading eigenvector distributed as chi^2_{n-1} / chi^2_b, and a Chebyshev
polynomial of the Krylov space makes (1 - eps) mu of it (Kuczynski and Wozniakowski 1992, SIAM J. Matrix Anal. Appl. 13, for
one vector). The vectors are drawn by a seed that depends on the data, so that nobody who sends a part of it knows them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.small_matrices import eigvalsh, orthonormal

Product = Callable[[Tensor], Tensor]
FAILURE_PROBABILITY = 1e-9  # of a bound, for each of the three random quantities
START_VECTORS = 16  # starting vectors
MAX_BLOCKS = 8  # of the Krylov space
TAU_COUNT = 12  # tried near mu, and as many between mu and the largest eigenvalue
# Errors below this share of |W| are not told apart, by float32 products and by float64 ones (of what is published in float32)
FLOAT32_ROUNDING, FLOAT64_ROUNDING = 3e-6, 3e-7


class ComplementProbe:
    """Bounds on W outside a subspace Q (n, l), from Gaussian vectors there and a block Krylov iteration from them.

    `forth` multiplies by W^T (or W, for a subspace of the right side), `back` by the other. The caller makes
    the first product together with a wider one of its own: it multiplies `vectors` (n, b) forth and passes the result to `begin`.
    """

    def __init__(self, Q: Tensor, forth: Product, back: Product, generator: torch.Generator) -> None:
        self._known, self._forth, self._back = Q, forth, back
        self._n = Q.shape[0] - Q.shape[1]
        self._b = min(START_VECTORS, self._n)
        drawn = torch.randn(Q.shape[0], self._b, generator=generator, dtype=torch.float64)
        self.vectors = _project_out(Q, drawn.to(Q.device))
        self._images: list[Tensor] = []
        self.energy = 0.0

    def begin(self, images: Tensor) -> None:
        """Take the product with `vectors`, float64."""
        if self._b == 0:  # Q spans the whole space
            return
        self.energy = float(images.square().sum()) / max(1, self._b)  # of the trace of D, without bias
        block, to_vectors = orthonormal(self.vectors)
        self._add(block, torch.linalg.solve_triangular(to_vectors, images, upper=True, left=False))

    def extend(self) -> bool:
        """Add a block; False where the space is exhausted or has `MAX_BLOCKS`."""
        if len(self._images) >= MAX_BLOCKS or self._known.shape[1] + self._b > self._known.shape[0]:
            return False
        block = self._back(self._images[-1]).double()
        for _ in range(
            2
        ):  # where the space is exhausted the first leaves rounding, which need not be orthogonal to anything
            block, _ = torch.linalg.qr(_project_out(self._known, block))
        self._add(block, self._forth(block).double())
        return True

    def _add(self, block: Tensor, images: Tensor) -> None:
        self._known = torch.cat([self._known, block], dim=1)
        self._images.append(images)

    def lower_bound(self) -> float:
        """A lower bound on mu."""
        if not self._images:
            return 0.0
        images = torch.cat(self._images, dim=1)
        return float(eigvalsh(images.mT @ images)[0])

    def upper_bound(self) -> float:
        """An upper bound on mu."""
        if self._known.shape[1] == self._known.shape[0]:
            return self.lower_bound()
        return _upper_bound(self.lower_bound(), krylov_gap(self._n, self._b, len(self._images)))

    def best_upper_bound(self) -> float:
        """What `upper_bound` will say at the least after all `MAX_BLOCKS`."""
        return _upper_bound(self.lower_bound(), krylov_gap(self._n, self._b, MAX_BLOCKS)) if self._b else 0.0

    def energy_lower_bound(self) -> float:
        """A lower bound on the trace: the mean over b vectors is at most E + 2 sqrt(largest E t / b) + 2 largest t / b
        (Laurent and Massart 2000, Annals of Statistics 28, lemma 1)."""
        c = self.upper_bound() * -math.log(FAILURE_PROBABILITY) / max(1, self._b)
        if not math.isfinite(c):
            return 0.0
        return max(0.0, math.sqrt(max(0.0, self.energy - c)) - math.sqrt(c)) ** 2


def krylov_gap(n: int, b: int, steps: int, chance: float = FAILURE_PROBABILITY) -> float:
    """eps: the Krylov space of `steps` blocks of b Gaussian vectors in n dimensions finds at least (1 - eps) mu; 1 if nothing
    can be promised.
    """
    # Chernoff: chi^2_b < b x with chance at most (x e^(1-x))^(b/2); chi^2_n < n + 2 sqrt(n t) + 2 t but for exp(-t)
    least = b * chance ** (2 / b) / math.e
    t = -math.log(chance)
    most = n + 2 * math.sqrt(n * t) + 2 * t

    def enough(eps: float) -> bool:
        chebyshev = math.cosh((steps - 1) * math.acosh((1 + eps) / (1 - eps)))
        return bool(chebyshev**2 * eps / (1 - eps) > most / least)

    low, high = 1e-6, 1 - 1e-6
    if not enough(high):
        return 1.0
    for _ in range(60):
        eps = (low + high) / 2
        low, high = (low, eps) if enough(eps) else (eps, high)
    return high


def max_energy(T: Tensor, CtC: Tensor, rank: int, largest: float) -> float:
    """The bound above, each j at the best of some tau: T and C^T C (l, l) float64, `upper_bound` an upper bound on mu."""
    if not math.isfinite(largest):
        return math.inf
    theta = eigvalsh(T)
    rth, first = float(theta[min(rank, len(theta)) - 1]), float(theta[0])
    floor = max(largest, 1e-30 * first, 1e-300)
    steps = torch.linspace(0, 1, TAU_COUNT + 1, dtype=torch.float64, device=T.device)[1:]
    near = floor + steps**3 * max(rth - floor, floor)  # where the spectrum is flat at r, it counts how close to mu
    wide = floor * (max(first, 2 * floor) / floor) ** steps  # for a large lambda_j the gap is its own distance from mu
    taus = torch.cat([near, wide])
    blocks = T + CtC / (taus - largest).clamp(min=1e-300)[:, None, None]
    values = eigvalsh(blocks)[:, :rank]
    missing = rank - values.shape[1]  # ranks beyond the subspace can each keep tau at most
    return float(torch.maximum(values, taus[:, None]).amin(dim=0).sum() + missing * taus.min())


def error_ratio(kept: float, most: float, total: float, rounding: float = FLOAT32_ROUNDING) -> float:
    """The most by which a truncation that keeps the energy `kept` can miss the smallest error, as a ratio of norms.

    rounding: the share of |W| below which errors are not told apart. A smaller `total` makes it larger: give a lower bound.
    """
    rounding = rounding**2 * total
    best, got = total - max(most, kept) + rounding, total - kept + rounding
    return math.sqrt(got / best) if best > 0 else math.inf


def _upper_bound(seen: float, krylov_gap: float) -> float:
    return seen / (1 - krylov_gap) if krylov_gap < 1 else math.inf


def _project_out(Q: Tensor, block: Tensor) -> Tensor:
    return block - Q @ (Q.mT @ block)
