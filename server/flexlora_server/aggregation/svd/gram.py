"""The Gram route: two R x R Gram matrices and the eigenvalues of a third, no factorisation of anything long.

With A A^T = L L^T, the matrix K = L^T (B^T B) L has the eigenvalues sigma^2 and eigenvectors Z; then U Sigma = B L Z and
V = A^T (B^T B) L Z / sigma^2. Nothing is divided by L, so nearly equal rows of A (all participants start from the same ones)
do no harm. Squaring costs half the digits: where the smallest requested singular value has lost too many, the route fails.
"""

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.leading import EPS, LeadingTriplets, RouteFailed
from flexlora_server.aggregation.svd.small_matrices import eigh
from flexlora_server.aggregation.svd.stack import Stack

# sigma_r^2 must exceed the noise of K by this much: then it is right to 1e-5
NOISE_MARGIN = 1e5


def by_gram(stack: Stack, rank: int) -> LeadingTriplets:
    """The leading min(rank, R) triplets.

    Raises:
        RouteFailed: the smallest of them is too small beside the largest for squared numbers.
    """
    of_B, of_A = _balanced(*stack.grams(), stack.scales)
    root = _root(of_A.matrix)
    values, Z = eigh(root.mT @ of_B.matrix @ root)
    noise = EPS * float(of_A.matrix.norm()) * float(of_B.matrix.norm())
    check_resolved(values, rank, noise, "R x R")
    X = root @ Z[:, :rank]
    US = stack.B_times(of_B.scale[:, None] * X)
    S = US.norm(dim=0)
    Vt = stack.times_A((of_B.matrix @ X / S.square()).mT * of_A.scale)
    known = torch.cat([S, torch.where(values > noise, values, 0.0).sqrt()[rank:]])
    products = of_A.matrix * of_B.matrix
    return LeadingTriplets(US, S, Vt, known, float(products.sum()), products=products)


def check_resolved(values: Tensor, rank: int, noise: float, which: str) -> None:
    """Raise RouteFailed unless the `rank`th of the descending eigenvalues stands well above the noise."""
    smallest = float(values[: min(rank, len(values))][-1])
    if not smallest > NOISE_MARGIN * noise:
        ratio = max(smallest, 0.0) / float(values[0]) if float(values[0]) > 0 else 0.0
        raise RouteFailed(
            f"singular value {min(rank, len(values))} is {ratio**0.5:.1e} of the first, lost in a {which} square"
        )


class _Scaled:
    """A Gram matrix of columns that were scaled by `scale`."""

    def __init__(self, gram: Tensor, scale: Tensor) -> None:
        self.matrix, self.scale = scale[:, None] * gram * scale, scale


def _balanced(of_B: Tensor, of_A: Tensor, scales: Tensor) -> tuple[_Scaled, _Scaled]:
    """The Gram matrices of rows of A of norm 1, their norms and the stack's scales moved to B."""
    norms = of_A.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    return _Scaled(of_B, scales * norms), _Scaled(of_A, inverse)


def _root(gram: Tensor) -> Tensor:
    """L with L L^T = gram: Cholesky's, or from the eigenvectors where the rows depend on each other."""
    factored = torch.linalg.cholesky_ex(gram)
    L: Tensor = factored.L
    if not bool(factored.info):
        return L
    values, vectors = eigh(gram)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
