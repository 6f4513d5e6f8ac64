"""The QR route: Householder QR of both factors and the SVD of their small core, all in float64.

The safest of the factored routes: small singular values keep the digits that a Gram matrix loses.
"""

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.leading import LeadingTriplets
from flexlora_server.aggregation.svd.small_matrices import small_svd
from flexlora_server.aggregation.svd.stack import Stack


def by_qr(stack: Stack, rank: int) -> LeadingTriplets:
    """The leading triplets; Q stays implicit (Householder reflectors): only the requested columns are computed."""
    B, A = stack.factors()
    left, left_tau = torch.geqrf(B)
    right, right_tau = torch.geqrf(A.mT)
    m, n = len(left_tau), len(right_tau)
    U, sigma, Vt = small_svd(left[:m].triu() @ right[:n].triu().mT)
    kept = min(rank, len(sigma))
    US = _expand(left[:, :m], left_tau, U[:, :kept] * sigma[:kept])
    V = _expand(right[:, :n], right_tau, Vt[:kept].mT)
    return LeadingTriplets(US, sigma[:kept], V.mT, sigma, float(sigma.square().sum()))


def _expand(reflectors: Tensor, tau: Tensor, vectors: Tensor) -> Tensor:
    padded = vectors.new_zeros(reflectors.shape[0], vectors.shape[1])
    padded[: vectors.shape[0]] = vectors
    return torch.ormqr(reflectors, tau, padded)
