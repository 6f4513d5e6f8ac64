"""Factorisations of small float64 matrices, by a second algorithm where LAPACK's first does not converge."""

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # exported, but not in torch's annotations

from flexlora_server.aggregation.svd.leading import RouteFailed
from flexlora_server.errors import AggregationError


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) descending and eigenvectors (n, n) of a symmetric matrix; raises RouteFailed without convergence."""
    if not bool(torch.isfinite(symmetric).all()):
        raise RouteFailed("the squared numbers are too large for float64")
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except LinAlgError as error:
        raise RouteFailed(f"LAPACK's symmetric eigensolver failed: {error}") from error
    return values.flip(0), vectors.flip(1)


def eigvalsh(symmetric: Tensor) -> Tensor:
    """Eigenvalues (..., n), descending, of symmetric matrices; raises RouteFailed without convergence."""
    if not bool(torch.isfinite(symmetric).all()):
        raise RouteFailed("the squared numbers are too large for float64")
    try:
        values: Tensor = torch.linalg.eigvalsh(symmetric)
    except LinAlgError as error:
        raise RouteFailed(f"LAPACK's symmetric eigensolver failed: {error}") from error
    return values.flip(-1)


def small_svd(C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a float64 matrix (m, n): U (m, p), sigma (p,), Vt (p, n), p = min(m, n).

    LAPACK's gesdd; should it not converge, the symmetric solver on [[0, C], [C^T, 0]], whose eigenpairs are
    +-sigma with (u, +-v) / sqrt(2): another algorithm of the same accuracy (Golub and Van Loan, 8.6).

    Raises:
        AggregationError: a number that is not finite, so that no route can succeed.
        RouteFailed: neither algorithm converged.
    """
    if not bool(torch.isfinite(C).all()):
        raise AggregationError(
            "the stacked factors hold a NaN or an infinity, or their product is too large for float64"
        )
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
        values, vectors = eigh(symmetric)
    except RouteFailed as error:
        raise RouteFailed(f"neither SVD algorithm converged on a {m} x {n} core: {error}") from error
    p = min(m, n)
    leading = vectors[:, :p] * 2**0.5
    return leading[:m], values[:p].clamp(min=0), leading[m:].mT


def orthonormal(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Q (d, n) float64 with orthonormal columns and R (n, n) with Q R = Y, for Y (d, n), d >= n.

    Cholesky QR twice (Yamamoto et al. 2015, ETNA 44), three times faster than Householder's; that where Y is too
    ill-conditioned for it, which includes fewer independent columns than n: then Q is completed.
    """
    Y = Y.double()
    Q, total = Y, None
    for _ in range(2):
        L, failed = torch.linalg.cholesky_ex(Q.mT @ Q)
        pivots = L.diagonal()
        if bool(failed) or not float(pivots.min()) > 1e-5 * float(pivots.max()):
            Q, R = torch.linalg.qr(Y)
            return Q, R
        Q = torch.linalg.solve_triangular(L.mT, Q, upper=True, left=False)
        total = L.mT if total is None else L.mT @ total
    assert total is not None
    return Q, total
