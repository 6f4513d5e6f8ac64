"""The geometry of a round's changes within the leading directions of what the round published.

Inner products of whole changes cost (sum of ranks)^2 (d + k) operations. For the metrics of a round with many participants it
is enough to project the changes on the directions in which the global update moves: X_i = U^T D_i V with U, V the leading
directions of the result, which costs no more than one product of the stack with a block.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update, bases, slice_factors
from flexlora_server.aggregation.geometry.update_geometry import Geometry
from flexlora_server.aggregation.svd.small_matrices import orthonormal

DIRECTIONS = 32  # on either side of the result


def projected_geometry(
    updates: Sequence[Update], previous: GlobalFactors, result: GlobalFactors, dtype: torch.dtype, fresh: bool
) -> Geometry:
    """Inner products <X_i, X_j> of the participants' changes, multiplied in float32; see `geometry.module_geometry`.

    Metrics must not fail a round: what float32 cannot hold is multiplied in float64.
    """
    count = min(DIRECTIONS, *result.B.shape, *result.A.shape)
    U, V = orthonormal(result.B[:, :count])[0].float(), orthonormal(result.A[:count].mT)[0].float()
    cut_from = bases(updates, previous)
    A0 = {kind: (base.A @ V).double() for kind, base in cut_from.items()}
    B0 = {
        kind: kind.scaling * (U.mT @ (base.B.double() / kind.scaling).to(dtype).float()).double()
        for kind, base in cut_from.items()
    }
    rows = []
    for u in updates:
        X = _project(U, V, u)
        rows.append((X if fresh else X - B0[u.kind][:, : u.rank] @ A0[u.kind][: u.rank]).flatten())
    X = torch.stack(rows)
    return Geometry(X @ X.mT, None, 0.0)


def _project(U: Tensor, V: Tensor, update: Update) -> Tensor:
    left, right = U.mT @ update.B.float(), update.A.float() @ V
    if not bool(torch.isfinite(left).all() & torch.isfinite(right).all()):
        left, right = U.double().mT @ update.B.double(), update.A.double() @ V.double()
    return update.scaling * left.double() @ right.double()


def squared_norms(updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, fresh: bool) -> Tensor:
    """|D_i|^2 of the whole changes (N,), float64: without the pairs, each participant's own Gram matrices are enough.

    D = dB A0 + s B dA as in `changes`, in float32 where that holds it.
    """
    served = {
        kind: kind.scaling * slice_factors(base, len(base.A), kind.scaling, dtype)[1].float()
        for kind, base in bases(updates, previous).items()
    }
    norms = []
    for u in updates:
        factors = (u.scaling, u.B, u.A, served[u.kind][:, : u.rank], u.base_or(previous).A[: u.rank])
        squared = _squared(*factors, torch.float32, fresh)
        norms.append(squared if math.isfinite(squared) else _squared(*factors, torch.float64, fresh))
    return torch.tensor(norms, dtype=torch.float64)


def _squared(s: float, B: Tensor, A: Tensor, B0: Tensor, A0: Tensor, dtype: torch.dtype, fresh: bool) -> float:
    B, A, B0, A0 = s * B.to(dtype), A.to(dtype), B0.to(dtype), A0.to(dtype)
    if not fresh:
        ratio = A0.norm(dim=1) / A.norm(dim=1)
        ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
        B, A = B / ratio, A * ratio[:, None]
        B, A = torch.cat([B - B0, B], dim=1), torch.cat([A0, A - A0])
    return max(0.0, float(((B.mT @ B).double() * (A @ A.mT).double()).sum()))


def cosines(geometry: Geometry) -> Tensor:
    """The cosine between every two changes, (N, N) float64; NaN where a change is 0."""
    norms = geometry.inner.diagonal().clamp(min=0).sqrt()
    values = geometry.inner / torch.outer(norms, norms)
    return torch.where(torch.isfinite(values), values.clamp(-1, 1), torch.nan)
