"""The geometry of a round's changes within the leading directions of what the round published.

Inner products of whole changes cost (sum of ranks)^2 (d + k) operations. For the figures of a round with many participants it
is enough to see the changes where the global update moves: X_i = U^T D_i V with U, V the leading directions of the result,
which costs no more than one product of the stack with a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.geometry import Geometry
from flexlora_server.aggregation.routes.small import orthonormal

LEADING = 32  # directions on either side


def projected_geometry(
    updates: Sequence[Update], previous: GlobalFactors, result: GlobalFactors, dtype: torch.dtype, fresh: bool
) -> Geometry:
    """Inner products <X_i, X_j> of the participants' changes, multiplied in float32; see `geometry.module_geometry`."""
    most = min(LEADING, *result.B.shape, *result.A.shape)
    U, V = orthonormal(result.B[:, :most])[0].float(), orthonormal(result.A[:most].mT)[0].float()
    A0 = previous.A @ V
    B0 = {s: s * (U.mT @ (previous.B.double() / s).to(dtype).float()) for s in {u.served_scaling for u in updates}}
    rows = []
    for u in updates:
        X = u.scaling * (U.mT @ u.B.float()) @ (u.A.float() @ V)
        rows.append((X if fresh else X - B0[u.served_scaling][:, : u.rank] @ A0[: u.rank]).flatten())
    X = torch.stack(rows).double()
    return Geometry(X @ X.mT, None, 0.0)


def cosines(geometry: Geometry) -> Tensor:
    """Between all pairs of changes, (N, N) float64; NaN for one that is nothing."""
    norms = geometry.inner.diagonal().clamp(min=0).sqrt()
    found = geometry.inner / torch.outer(norms, norms)
    return torch.where(torch.isfinite(found), found.clamp(-1, 1), torch.nan)
