"""The geometry of a round's changes within the leading directions of what the round published, and their whole norms.

Inner products of whole changes cost (sum of ranks)^2 (d + k) operations. For the metrics of a round with many participants it
is enough to project the changes on the directions in which the global update moves: X_i = U^T D_i V with U, V the leading
directions of the result; and norms need no pairs. With differences dB = B - B0, dA = A - A0 from what was served,

    D / s       = dB A0 + B dA,
    |D|^2 / s^2 = dB^T dB . A0 A0^T + 2 dB^T B . A0 dA^T + B^T B . dA dA^T    (. sums the products of entries),
    X / s       = (U^T dB)(A0 V) + (U^T B)(dA V).

All of it follows from dB^T [dB B0 U] and dA [dA^T A0^T V], one product a side,
multiplied in float32 for several participants of a small rank at a time.

Metrics must not fail a round: what float32 does not hold is computed again in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.geometry.update_geometry import Geometry
from flexlora_server.aggregation.svd.small_matrices import orthonormal

DIRECTIONS = 16  # on either side of the result
COLUMNS = 32  # of participants of one rank that are multiplied at once
# A squared norm that is a smaller share of what cancels in it, or that small, may have lost its digits in float32.
MIN_SHARE_LEFT, MIN_SQUARE = 1e-3, 1e-30
MAX_IMBALANCE = 16.0  # of the squared norms of a row of A and of the one served: beyond, differences lose digits


@dataclass(frozen=True)
class _Known:
    """What participants who were served alike at one rank have in common, as rows: B0^T (r, d), A0 (r, k), U^T, V^T."""

    scaling: float
    B0: Tensor
    A0: Tensor
    Ut: Tensor
    Vt: Tensor


@dataclass(frozen=True)
class _Products:
    """Of m participants' rows x (r, n), float64: products with themselves and with what was served (m, r, r), and with the
    directions (m, r, c)."""

    own: Tensor
    served: Tensor
    along: Tensor


def projected_geometry(
    updates: Sequence[Update], previous: GlobalFactors, result: GlobalFactors, dtype: torch.dtype, fresh: bool
) -> tuple[Geometry, Tensor]:
    """Inner products <X_i, X_j> of the projected changes, and |D_i|^2 of the whole ones (N,), float64.

    See `geometry.module_geometry` for the arguments.
    """
    count = min(DIRECTIONS, *result.B.shape, *result.A.shape)
    Ut, Vt = orthonormal(result.B[:, :count])[0].mT.float(), orthonormal(result.A[:count].mT)[0].mT.float()
    squares = torch.empty(len(updates), dtype=torch.float64)
    X = torch.empty(len(updates), count, count, dtype=torch.float64)
    for alike in _alike(updates):
        own = [updates[index] for index in alike]
        known = _known(own[0], previous, Ut, Vt, dtype, fresh)
        squares[alike], X[alike] = _figures(own, known)
    X = X.flatten(1)
    return Geometry(X @ X.mT, None, 0.0), squares


def _alike(updates: Sequence[Update]) -> Iterator[list[int]]:
    """The indices of the updates of one rank and scaling that were served one kind of slice."""

    def key(index: int) -> tuple[int, float, int, float]:
        update = updates[index]
        return update.rank, update.scaling, *update.kind

    return (list(group) for _, group in groupby(sorted(range(len(updates)), key=key), key))


def _known(one: Update, previous: GlobalFactors, Ut: Tensor, Vt: Tensor, dtype: torch.dtype, fresh: bool) -> _Known:
    A0, B0 = slice_factors(one.base_or(previous), one.rank, one.served_scaling, dtype)
    if fresh:
        A0, B0 = torch.zeros_like(A0), torch.zeros_like(B0)
    if one.scaling != one.served_scaling:  # in units of the upload's B
        B0 = B0.double() * (one.served_scaling / one.scaling)
    return _Known(one.scaling, B0.mT, A0, Ut, Vt)


def _figures(updates: Sequence[Update], known: _Known) -> tuple[Tensor, Tensor]:
    """|D|^2 (m,) and X (m, c, c)."""
    B0, A0 = known.B0.float(), known.A0.float()
    of_B, of_A = _products([u.B.mT for u in updates], B0, known.Ut), _products([u.A for u in updates], A0, known.Vt)
    HB, HA = (B0 @ B0.mT).double(), (A0 @ A0.mT).double()
    dB_B = of_B.own + of_B.served
    BB = dB_B + of_B.served.mT + HB
    squares = (of_B.own * HA).sum((1, 2)) + 2 * (dB_B * of_A.served.mT).sum((1, 2)) + (BB * of_A.own).sum((1, 2))
    B0_U, A0_V = (B0 @ known.Ut.mT).double(), (A0 @ known.Vt.mT).double()
    X = of_B.along.mT @ A0_V + (of_B.along + B0_U).mT @ of_A.along
    reach = (_diagonal(of_B.own) * HA.diagonal() + _diagonal(BB) * _diagonal(of_A.own)).sum(1)
    balance = (_diagonal(of_A.own) + 2 * _diagonal(of_A.served)) / HA.diagonal() + 1  # |a|^2 over |a0|^2
    held = (squares > MIN_SHARE_LEFT * reach) & (squares > MIN_SQUARE) & torch.isfinite(X).flatten(1).all(1)
    held &= ((balance > 1 / MAX_IMBALANCE) & (balance < MAX_IMBALANCE) | (HA.diagonal() == 0)).all(1)
    squares, X = known.scaling**2 * squares, known.scaling * X
    for index in torch.nonzero(~held).flatten().tolist():
        squares[index], X[index] = _in_float64(updates[index], known)
    return squares, X


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2)


def _products(uploaded: Sequence[Tensor], served: Tensor, directions: Tensor) -> _Products:
    """Of the differences x = uploaded - served."""
    r, n = served.shape
    at_once = min(max(1, COLUMNS // r), len(uploaded))
    # one matrix, in the order of its factors in memory: the differences, then what they are multiplied with
    rows = at_once * r + r + len(directions)
    stack = torch.empty(n, rows).mT if uploaded[0].stride(0) == 1 and r > 1 else torch.empty(rows, n)
    stack[at_once * r : at_once * r + r], stack[at_once * r + r :] = served, directions
    own, across, along = [], [], []
    for first in range(0, len(uploaded), at_once):
        part = uploaded[first : first + at_once]
        m = len(part)
        for place, factor in enumerate(part):
            torch.sub(factor, served, out=stack[place * r : place * r + r])
        found = stack[: m * r] @ stack.mT
        own.append(found[:, : m * r].reshape(m, r, m, r).diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        across.append(found[:, at_once * r : at_once * r + r].reshape(m, r, r))
        along.append(found[:, at_once * r + r :].reshape(m, r, -1))
    return _Products(torch.cat(own).double(), torch.cat(across).double(), torch.cat(along).double())


def _in_float64(update: Update, known: _Known) -> tuple[Tensor, Tensor]:
    """|D|^2 and X of one participant; rows of A get the norms of the served ones before differences are taken."""
    B, A, B0, A0 = update.B.double(), update.A.double(), known.B0.double().mT, known.A0.double()
    ratio = A0.norm(dim=1) / A.norm(dim=1)
    ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    B, A = known.scaling * B / ratio, A * ratio[:, None]
    left, right = torch.cat([B - known.scaling * B0, B], dim=1), torch.cat([A0, A - A0])
    square = ((left.mT @ left) * (right @ right.mT)).sum().clamp(min=0)
    return square, (known.Ut.double() @ left) @ (right @ known.Vt.double().mT)


def cosines(geometry: Geometry) -> Tensor:
    """The cosine between every two changes, (N, N) float64; NaN where a change is 0."""
    norms = geometry.inner.diagonal().clamp(min=0).sqrt()
    values = geometry.inner / torch.outer(norms, norms)
    return torch.where(torch.isfinite(values), values.clamp(-1, 1), torch.nan)
