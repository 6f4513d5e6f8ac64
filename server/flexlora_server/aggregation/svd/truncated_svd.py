"""The truncated SVD of a stack, by the cheapest route, and by the next safer one where that fails.

Exact where `error_bound` is 1, else certified. The result is a function of the bytes of the stack and of `start` alone if
torch runs on one thread (`torch.set_num_threads(1)`); with more, LAPACK and BLAS may sum in another order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from flexlora_server.aggregation.svd import cost
from flexlora_server.aggregation.svd.dense import by_eigh, by_svd
from flexlora_server.aggregation.svd.gram import by_gram
from flexlora_server.aggregation.svd.leading import EPS, LeadingTriplets, RouteFailed
from flexlora_server.aggregation.svd.qr import by_qr
from flexlora_server.aggregation.svd.stack import Stack
from flexlora_server.aggregation.svd.subspace import by_subspace
from flexlora_server.errors import AggregationError

# Float64 rounding in units of the sum of the rank-one norms: what is below is no singular value. (Relative to that sum, not
# to sigma_1: updates that cancel leave noise of the size of what was cancelled.)
_NOISE = 32 * EPS
_TIE_FACTOR = 1 - 1e-9
_EXACT_ROUTES = {"gram": by_gram, "qr": by_qr, "eigh": by_eigh, "svd": by_svd}


@dataclass(frozen=True)
class TruncatedSVD:
    """W = U diag(S) Vt at some rank r, all float64.

    US: (d, r), left singular vectors times S; the largest |entry| of a column is positive, columns of S = 0 are zero.
    S: (r,), descending, exactly 0 where W has no such direction.
    Vt: (r, k), orthonormal rows, completed where S = 0 (beyond k rows: orthonormal in blocks of k).
    singular_values: those of W that are known, descending: all min(d, R, k) by an exact route, S by a certified one.
    total_energy: the squared Frobenius norm of W; an estimate where the route is not exact (its tail to about 1 %).
    certificate: the truncation's error is at most this many times the smallest possible, but for float32 rounding.
    route: how it was computed; `fell_back` names the routes that failed before, and why.
    products: see `LeadingTriplets`.
    """

    US: Tensor
    S: Tensor
    Vt: Tensor
    singular_values: Tensor
    total_energy: float
    certificate: float
    route: str
    fell_back: tuple[str, ...]
    products: Tensor | None = None


def decompose(stack: Stack, rank: int, error_bound: float = 1.0, start: Tensor | None = None) -> TruncatedSVD:
    """The rank-`rank` truncated SVD of the stack's W (d, k).

    error_bound: the ratio of the truncation's error to the smallest possible that is good enough; 1 asks for exactness.
    start: (j, k), directions that W's leading right singular vectors may be near, such as the previous round's.

    Raises:
        AggregationError: shapes that do not multiply, non-finite values, or no convergence by any route.
    """
    _check(stack, rank)
    failed: list[str] = []
    for route in cost.choose_routes(*stack.shape, rank, exact=error_bound <= 1):
        try:
            if route == "subspace":
                triplets = by_subspace(stack, rank, error_bound, start, cost.max_products(*stack.shape, rank))
            else:
                triplets = _EXACT_ROUTES[route](stack, rank)
        except RouteFailed as error:
            failed.append(f"{route}: {error}")
        else:
            return _finished(triplets, stack, rank, route, tuple(failed))
    raise AggregationError("; ".join(failed))


def _check(stack: Stack, rank: int) -> None:
    d, _, k = stack.shape
    for term in stack.terms:
        if rank < 1 or term.B.shape[0] != d or term.A.shape[1] != k or term.B.shape[1] != term.A.shape[0]:
            raise AggregationError(f"cannot decompose {tuple(term.B.shape)} @ {tuple(term.A.shape)} at rank {rank}")


def _finished(triplets: LeadingTriplets, stack: Stack, rank: int, route: str, failed: tuple[str, ...]) -> TruncatedSVD:
    """Cut off noise, fix signs, complete rows."""
    R = stack.shape[1]
    noise = _NOISE * stack.rank_one_norms
    sigma = torch.where(triplets.singular_values > noise, triplets.singular_values, 0.0)[:R]
    kept = min(rank, R, len(triplets.S), int((sigma > 0).sum()))
    signs = _signs(triplets.US[:, :kept])
    US, S = pad(triplets.US[:, :kept] * signs, (0, rank - kept)), pad(triplets.S[:kept], (0, rank - kept))
    Vt = complete_rows(triplets.Vt[:kept] * signs[:, None], rank)
    energy = triplets.total_energy if kept else 0.0
    return TruncatedSVD(US, S, Vt, sigma, energy, triplets.certificate, route, failed, triplets.products)


def complete_rows(Vt: Tensor, rows: int) -> Tensor:
    """Vt (j, k), orthonormal, and rows - j more orthonormal to it that depend on shapes and Vt alone.

    More than k rows cannot all be orthonormal: each further k start afresh.
    """
    j, k = Vt.shape
    if rows > k:
        return torch.cat([complete_rows(Vt, k), complete_rows(Vt[:0], rows - k)])
    if rows == j:
        return Vt
    generator = torch.Generator().manual_seed(k)
    extra = torch.randn(rows - j, k, dtype=Vt.dtype, generator=generator).to(Vt.device)
    for _ in range(2):  # the second pass removes what rounding in the first has left along Vt
        extra = extra - (extra @ Vt.mT) @ Vt
        extra = torch.linalg.qr(extra.mT).Q.mT
    return torch.cat([Vt, extra])


def _signs(U: Tensor) -> Tensor:
    """+-1 per column, so that its largest |entry| (the first of those equal to rounding) becomes positive."""
    if U.shape[1] == 0:
        return U.new_ones(0)
    size = U.abs()
    first = (size >= size.amax(dim=0) * _TIE_FACTOR).to(torch.uint8).argmax(dim=0, keepdim=True)
    return torch.where(U.gather(0, first)[0] < 0, -1.0, 1.0).to(U.dtype)
