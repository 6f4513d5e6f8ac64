"""The exact truncated SVD of a product of two factors, W = B @ A, without forming W where that is cheaper.

Householder QR of both factors and the SVD of the small core, all in float64: with Q kept implicit that costs
little, and small singular values keep the digits a Gram matrix would lose. The result is a function of the bytes
of B and A alone if torch runs on one thread (`torch.set_num_threads(1)`); with more, LAPACK and BLAS may sum in
another order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # exported, but not in torch's annotations

from flexlora_server.aggregation.check import check_finite
from flexlora_server.aggregation.errors import AggregationError

# Float64 rounding in the core, in units of the sum of the rank-one norms: what is below is no singular value.
# (Relative to that sum, not to sigma_1: updates that cancel leave noise of the size of what was cancelled.)
_NOISE = 32 * torch.finfo(torch.float64).eps
_TIE = 1 - 1e-9


@dataclass(frozen=True)
class TruncatedSVD:
    """W = U diag(S) Vt at some rank r, all float64.

    U: (d, r), orthonormal columns where S > 0, zero where S = 0; the largest |entry| of a column is positive.
    S: (r,), descending, exactly 0 where W has no such direction.
    Vt: (r, k), orthonormal rows, completed where S = 0 (beyond k rows: orthonormal in blocks of k).
    singular_values: the min(d, R, k) of W that can differ from 0, descending.
    total_energy: the squared Frobenius norm of W.
    """

    U: Tensor
    S: Tensor
    Vt: Tensor
    singular_values: Tensor
    total_energy: float


def factored_svd(B: Tensor, A: Tensor, rank: int) -> TruncatedSVD:
    """The rank-`rank` truncated SVD of B @ A, for B (d, R) and A (R, k) of any float dtype.

    Raises AggregationError for shapes that do not multiply, non-finite values, or no convergence.
    """
    if rank < 1 or B.shape[1] != A.shape[0]:
        raise AggregationError(f"cannot decompose {tuple(B.shape)} @ {tuple(A.shape)} at rank {rank}")
    check_finite("the stack of lora_B", B)
    check_finite("the stack of lora_A", A)
    B, A = B.double(), A.double()
    U, sigma, Vt = _by_dense(B, A, rank) if _dense_is_cheaper(B, A) else _by_qr(B, A, rank)
    noise = _NOISE * float((B.norm(dim=0) * A.norm(dim=1)).sum())
    sigma = torch.where(sigma > noise, sigma, 0.0)[: B.shape[1]]
    energy = float(sigma.square().sum())
    kept = min(rank, int((sigma > 0).sum()))
    signs = _signs(U[:, :kept])
    full_U, full_S = B.new_zeros(B.shape[0], rank), B.new_zeros(rank)
    full_U[:, :kept], full_S[:kept] = U[:, :kept] * signs, sigma[:kept]
    return TruncatedSVD(full_U, full_S, complete_rows(Vt[:kept] * signs[:, None], rank), sigma, energy)


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


def _by_qr(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q stays implicit (Householder reflectors): only the leading `rank` vectors are ever expanded."""
    left, left_tau = torch.geqrf(B)
    right, right_tau = torch.geqrf(A.mT)
    m, n = len(left_tau), len(right_tau)
    U, sigma, Vt = small_svd(left[:m].triu() @ right[:n].triu().mT)
    U = _expand(left[:, :m], left_tau, U[:, :rank])
    V = _expand(right[:, :n], right_tau, Vt[:rank].mT)
    return U, sigma, V.mT


def _expand(reflectors: Tensor, tau: Tensor, vectors: Tensor) -> Tensor:
    padded = vectors.new_zeros(reflectors.shape[0], vectors.shape[1])
    padded[: vectors.shape[0]] = vectors
    return torch.ormqr(reflectors, tau, padded)


def _by_dense(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, sigma, Vt = small_svd(B @ A)
    return U[:, :rank], sigma, Vt[:rank]


def small_svd(C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a float64 matrix (m, n): U (m, p), sigma (p,), Vt (p, n), p = min(m, n).

    LAPACK's gesdd; should it not converge, the symmetric solver on [[0, C], [C^T, 0]], whose eigenpairs are
    +-sigma with (u, +-v) / sqrt(2): another algorithm of the same accuracy (Golub and Van Loan, 8.6).
    """
    try:
        U, sigma, Vt = torch.linalg.svd(C, full_matrices=False)
        return U, sigma, Vt
    except LinAlgError:
        return _svd_by_eigh(C)


def _svd_by_eigh(C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m, n = C.shape
    symmetric = C.new_zeros(m + n, m + n)
    symmetric[:m, m:], symmetric[m:, :m] = C, C.mT
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except LinAlgError as error:
        raise AggregationError(f"neither SVD algorithm converged on a {m} x {n} core: {error}") from error
    p = min(m, n)
    leading = vectors[:, -p:].flip(1) * 2**0.5
    return leading[:m], values[-p:].flip(0).clamp(min=0), leading[m:].mT


def _signs(U: Tensor) -> Tensor:
    """+-1 per column, so that its largest |entry| (the first of those equal to rounding) becomes positive."""
    if U.shape[1] == 0:
        return U.new_ones(0)
    size = U.abs()
    first = (size >= size.amax(dim=0) * _TIE).to(torch.uint8).argmax(dim=0, keepdim=True)
    return torch.where(U.gather(0, first)[0] < 0, -1.0, 1.0).to(U.dtype)


def _dense_is_cheaper(B: Tensor, A: Tensor) -> bool:
    """Compare floating-point operations: form W and decompose it, or reduce both factors first."""
    (d, R), k = B.shape, A.shape[1]
    m, n = min(d, R), min(k, R)
    dense = 2 * d * R * k + _svd_flops(d, k)
    factored = _qr_flops(d, R) + _qr_flops(k, R) + 2 * m * R * n + _svd_flops(m, n)
    return dense < factored


def _qr_flops(rows: int, columns: int) -> float:
    long, short = max(rows, columns), min(rows, columns)
    return 2 * long * short**2 - 2 * short**3 / 3


def _svd_flops(rows: int, columns: int) -> float:
    long, short = max(rows, columns), min(rows, columns)
    return 6 * long * short**2 + 20 * short**3
