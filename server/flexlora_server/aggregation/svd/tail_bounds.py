"""Bounds on the eigenvalues of D, what M = W W^T is outside a subspace, from Gaussian vectors there and a block Krylov space.

D (n, n) has the eigenvalues mu_1 >= mu_2 >= ... >= 0. G (n, b) is Gaussian, G = K R0 with K orthonormal, and the Krylov space of
K, D K, ..., D^(m-1) K has the Ritz values v_j and vectors y_j. With w_j = |R0^T (K^T y_j)|^2 / b, block Gauss quadrature says

    tr(G^T f(D) G) / b = sum_j w_j f(v_j)        exactly, for polynomials f of degree up to 2m - 1 (Golub and Meurant 2010, 6)

which is the trace of f(D) but for chance: where f >= 0, it is below tr f(D) - 2 sqrt(t) |f(D)| with probability exp(-b t) at
most, and above tr f(D) + 2 sqrt(t) |f(D)| + 2 t max f with no more (Laurent and Massart 2000, Annals of Statistics 28, lemma 1;
|f(D)| is the Frobenius norm). So, with polynomials f(u) >= max(0, u - c) and s(u) >= f(u)^2 on [0, 1] and any mu >= mu_1,

    sum of mu_i over i <= count  <=  count c mu + sum_i max(0, mu_i - c mu)  <=  mu (count c + tr f(D / mu)),

tr f(D / mu) is bounded through |f(D / mu)|^2 <= tr s(D / mu), and that through s <= s_most, |s|^2 <= s_most tr s. The polynomials
do not depend on G (`majorants`); which of them is best does, and so does mu. The least of all bounds is true if all of them
are: the chance of one is divided by the number of them, and mu is rounded up to a power of `GRID`: between mu_1 and
mu_1 / (1 - gap) there are few of those (`krylov_gap` promises that mu_1 <= v_1 / (1 - gap)). All that `TailBounds` says
together is false with probability `chance` at most, over the choice of G, which must not depend on D.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.certificate import krylov_gap
from flexlora_server.aggregation.svd.majorants import COUNT, majorants

GRID = 1.03


@dataclass(frozen=True)
class TailBounds:
    """largest: at least mu_1. top: at least the sum of the `count` largest. energy: at most the trace."""

    largest: float
    top: float
    energy: float


def tail_bounds(values: Tensor, weights: Tensor, n: int, b: int, steps: int, count: int, chance: float) -> TailBounds:
    """From `steps` blocks of b vectors in n dimensions: the Ritz values, descending, and the weights of the quadrature."""
    each = chance / 3
    gap = krylov_gap(n, b, steps, each)
    seen = float(values[0])
    if gap >= 1 or not seen > 0:
        return TailBounds(math.inf, math.inf, 0.0)
    mu = GRID ** math.ceil(math.log(seen / (1 - gap), GRID))
    scales = math.log(1 / (1 - gap), GRID) + 2
    t = math.log(2 * COUNT * scales / each) / b
    above = majorants(2 * steps - 1)
    of_f, of_s = above.sums((values / mu).clamp(0, 1), weights)
    squares = _solved(of_s, t * above.s_most)
    trace = torch.minimum(of_f + 2 * (t * squares).sqrt(), _solved(of_f, t * above.f_most))
    top = mu * float((count * above.c + trace).min())
    return TailBounds(mu, min(top, count * mu), _energy(float((weights * values).sum()), mu * -math.log(each) / b))


def _solved(mean: Tensor, a: Tensor) -> Tensor:
    """The largest x with x <= mean + 2 sqrt(a x)."""
    return (a.sqrt() + (a + mean.clamp(min=0)).sqrt()).square()


def _energy(mean: float, a: float) -> float:
    """The least x with mean <= x + 2 sqrt(a x) + 2 a."""
    return max(0.0, math.sqrt(max(0.0, mean - a)) - math.sqrt(a)) ** 2
