"""The geometry of a module's whole changes for metrics, from products that its SVD may have made already.

With W_i = s_i B_i A_i uploaded and S_i = t_i B0 A0 served, <D_i, D_j> = <W_i, W_j> - <W_i, S_j> - <S_i, W_j> + <S_i, S_j>, and

    <W_i, W_j> = sum over i's columns p and j's columns q of s_i s_j <b_p, b_q> <a_p, a_q>,

which is a block of what the Gram route sums up to |W|^2. What was served is a prefix of few factors for everybody: only their
products with the uploads are new. Where a change is so small that the four terms cancel, products do not hold it, and
differences have to be taken first, as in `changes`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update, bases
from flexlora_server.aggregation.geometry.update_geometry import Geometry

CHUNK = 1024  # rows of B, and columns of A, that are multiplied at once
# The share of the squares that cancel in it which a squared norm must be for products in this dtype to leave some four digits
MIN_SHARES_LEFT = {torch.float32: 1e-2, torch.float64: 1e-9}


@dataclass(frozen=True)
class _Served:
    """What was served: factors B^T (r, d) and A (r, k) of each kind, scales (K,) of all their columns side by side, and part
    (K, N), 1 where a participant was served a column."""

    Bt: list[Tensor]
    A: list[Tensor]
    scales: Tensor
    part: Tensor


def geometry_from_products(
    products: Tensor | None, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, fresh: bool
) -> Geometry | None:
    """The inner products <D_i, D_j>; None where cancellation leaves too few digits. See `update_geometry.module_geometry`.

    products: `Aggregate.products` of all these updates, each with a weight above 0; None: made here, in float32.
    """
    weights = torch.tensor([u.weight for u in updates], dtype=torch.float64)
    owner = torch.repeat_interleave(torch.tensor([u.rank for u in updates]))
    scales = torch.tensor([u.scaling for u in updates], dtype=torch.float64)[owner]
    precisions = list(MIN_SHARES_LEFT)
    if products is None:
        weights, precisions = torch.ones_like(weights), precisions[:1]
        products = scales[:, None] * _of_uploads(updates) * scales
    inner = _summed(_summed(products, owner).mT, owner) / torch.outer(weights, weights)
    size = _summed(products.diagonal(), owner) / weights.square()
    if fresh:
        return _unless_lost(inner, size, precisions[-1])
    served = _served(updates, previous, dtype)
    for precision in precisions:
        of_B = _products([*(u.B.mT for u in updates), *served.Bt], served.Bt, precision)
        of_A = _products([*(u.A for u in updates), *served.A], served.A, precision)
        across = torch.cat([scales, served.scales])[:, None] * (of_B * of_A) * served.scales
        of_uploads, of_served = across[: len(owner)], across[len(owner) :]
        mixed = _summed(of_uploads, owner) @ served.part
        whole = inner - mixed - mixed.mT + served.part.mT @ of_served @ served.part
        found = _unless_lost(whole, size + served.part.mT @ of_served.diagonal(), precision)
        if found is not None:
            return found
    return None


def _unless_lost(inner: Tensor, size: Tensor, precision: torch.dtype) -> Geometry | None:
    """The geometry, unless a diagonal entry is too small beside `size` (N,), the squares that cancel in it."""
    lost = (inner.diagonal() < MIN_SHARES_LEFT[precision] * size) | ~torch.isfinite(inner).all(1)
    return None if bool(lost.any()) else Geometry((inner + inner.mT) / 2, None, 0.0)


def _of_uploads(updates: Sequence[Update]) -> Tensor:
    """(B^T B) * (A A^T) of the uploads side by side."""
    Bt, A = [u.B.mT for u in updates], [u.A for u in updates]
    return _products(Bt, Bt, torch.float32) * _products(A, A, torch.float32)


def _summed(rows: Tensor, owner: Tensor) -> Tensor:
    """The sum of the rows of each participant: (N, ...) of (R, ...)."""
    return rows.new_zeros(int(owner[-1]) + 1, *rows.shape[1:]).index_add_(0, owner, rows)


def _served(updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype) -> _Served:
    Bt, A, scales, part = [], [], [], []
    for kind, base in bases(updates, previous).items():
        ranks = torch.tensor([u.rank if u.kind == kind else 0 for u in updates])
        most, scaling = int(ranks.max()), kind.scaling
        B0 = base.B[:, :most]
        if dtype == torch.float32 and math.frexp(scaling)[0] == 0.5:  # to divide by a power of 2 rounds nothing
            scaling = 1.0
        else:  # as `slice_factors` serves it
            B0 = (B0.double() / scaling).to(dtype)
        Bt.append(B0.mT)
        A.append(base.A[:most])
        scales.append(torch.full((most,), scaling, dtype=torch.float64))
        part.append((torch.arange(most)[:, None] < ranks).double())
    return _Served(Bt, A, torch.cat(scales), torch.cat(part))


def _products(rows: Sequence[Tensor], columns: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """X Y^T, float64, of factors (r, n) below one another: X = [rows], Y = [columns], multiplied in `dtype`."""
    total = torch.zeros(sum(map(len, rows)), sum(map(len, columns)), dtype=torch.float64)
    for first in range(0, rows[0].shape[1], CHUNK):
        some = slice(first, first + CHUNK)
        right = torch.cat([y[:, some] for y in columns]).to(dtype).mT
        total += torch.cat([x[:, some].to(dtype) @ right for x in rows])
    return total
