"""The dense routes, for stacks so wide that W itself is smaller: W in float64, of one module at a time."""

import torch

from flexlora_server.aggregation.svd.gram import NOISE_MARGIN, check_resolved
from flexlora_server.aggregation.svd.leading import EPS, LeadingTriplets
from flexlora_server.aggregation.svd.small_matrices import eigh, small_svd
from flexlora_server.aggregation.svd.stack import Stack


def by_eigh(stack: Stack, rank: int) -> LeadingTriplets:
    """W^T W or W W^T, whichever is smaller, and its eigenvectors.

    Raises:
        RouteFailed: as of the Gram route, of which this is the case B = W, A = 1.
    """
    W = stack.dense()
    wide = W.shape[0] < W.shape[1]
    tall = W.mT if wide else W  # (long, short)
    gram = tall.mT @ tall
    values, vectors = eigh(gram)
    # W itself has the rounding of what cancelled in it
    noise = max(EPS * float(gram.norm()), NOISE_MARGIN * (EPS * stack.rank_one_norms) ** 2)
    check_resolved(values, rank, noise, f"{len(values)} x {len(values)}")
    short = vectors[:, :rank]
    long = tall @ short
    S = long.norm(dim=0)
    known = torch.cat([S, torch.where(values > noise, values, 0.0).sqrt()[rank:]])
    US, Vt = (short * S, (long / S).mT) if wide else (long, short.mT)
    return LeadingTriplets(US, S, Vt, known, float(gram.trace()))


def by_svd(stack: Stack, rank: int) -> LeadingTriplets:
    """LAPACK's SVD of W: the slowest route and the safest."""
    U, sigma, Vt = small_svd(stack.dense())
    return LeadingTriplets(U[:, :rank] * sigma[:rank], sigma[:rank], Vt[:rank], sigma, float(sigma.square().sum()))
