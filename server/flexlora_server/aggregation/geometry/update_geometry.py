"""Norms and inner products of a round's changes: all that a robust filter needs.

A participant's change is D_i = W_i - S_i: what it uploaded, s_i B_i A_i, less the slice it was served, rounding included.
Over all modules it is one long vector; its inner products are sums over the modules.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from flexlora_server.aggregation.check_updates import check_finite
from flexlora_server.aggregation.factors import GlobalFactors, Update, bases, slice_factors
from flexlora_server.aggregation.geometry.changes import CHUNK_ELEMENTS, Changes, gram, inner_products
from flexlora_server.errors import AggregationError

# Share of a change's reach squared that rounding in the Gram matrices can hide.
_NOISE = 32 * torch.finfo(torch.float64).eps
# The global update is stored in float32: a change smaller than this share of its reach is rounding and has no direction.
_MIN_RELATIVE_CHANGE = 1e-6


@dataclass(frozen=True)
class Geometry:
    """Inner products of the changes of a round's N participants, and with the last change G of the global update.

    inner: <D_i, D_j>, (N, N) float64. with_previous: <D_i, G>, (N,), None where there was no round before.
    previous_norm: |G|.
    """

    inner: Tensor
    with_previous: Tensor | None
    previous_norm: float

    def __add__(self, other: "Geometry") -> "Geometry":
        """The geometry of two groups of tensors together."""
        terms = [with_ for with_ in (self.with_previous, other.with_previous) if with_ is not None]
        if len(terms) == 1 or self.inner.shape != other.inner.shape:
            raise AggregationError("geometries of different participants or rounds cannot be added")
        norm = math.hypot(self.previous_norm, other.previous_norm)
        return Geometry(self.inner + other.inner, terms[0] + terms[1] if terms else None, norm)

    @property
    def norms(self) -> list[float]:
        """|D_i|, in the order of the participants."""
        norms: list[float] = self.inner.diagonal().clamp(min=0).sqrt().tolist()
        return norms

    def of(self, participants: Sequence[int], factors: Sequence[float]) -> "Geometry":
        """The geometry of these participants, their changes multiplied by these factors."""
        index, c = torch.tensor(participants), torch.tensor(factors, dtype=torch.float64)
        with_previous = None if self.with_previous is None else self.with_previous[index] * c
        return Geometry(self.inner[index][:, index] * torch.outer(c, c), with_previous, self.previous_norm)


def module_geometry(
    updates: Sequence[Update], previous: GlobalFactors, before: GlobalFactors | None, dtype: torch.dtype, fresh: bool
) -> Geometry:
    """The geometry of one module, from R x R Gram matrices in float64; R is the sum of all ranks.

    previous: the global update the round's slices were cut from, served in `dtype`, but for updates with a `base` of their
    own; before: the one published a round earlier, so that G = previous - before. fresh: participants trained new adapters,
    hence S_i = 0. The result is a function of the bytes if torch runs on one thread.
    Raises AggregationError for non-finite values.
    """
    inner, reach = inner_products(Changes(updates, previous, before, dtype, fresh))
    # Factors that cancel can make a long change look short by rounding, so that a norm is never taken for less than rounding.
    inner.diagonal()[: len(updates)].clamp_(min=0).add_(_NOISE * reach[: len(updates)].square())
    return _geometry(inner, len(updates), still=float(reach[-1]) * _MIN_RELATIVE_CHANGE)


def factor_geometry(
    updates: Sequence[Update], previous: GlobalFactors, before: GlobalFactors | None, dtype: torch.dtype
) -> Geometry:
    """The geometry of one module for a strategy that averages the factors apart, which never sees their product.

    A change is that of `scaling * B` and that of A side by side, padded with zeros to the largest rank: factors that cancel in
    the product do not cancel there, where one participant's B meets another's A.
    """
    served = {
        kind: kind.scaling * slice_factors(base, len(base.A), kind.scaling, dtype)[1].double()
        for kind, base in bases(updates, previous).items()
    }
    own = ((u, served[u.kind][:, : u.rank], u.base_or(previous).A[: u.rank]) for u in updates)
    columns = [(u.scaling, u.B, B0, u.A, A0) for u, B0, A0 in own]
    if before is not None:
        columns.append((1.0, previous.B, before.B.double(), previous.A, before.A))
    d, k, r_max = len(previous.B), previous.A.shape[1], len(previous.A)
    step = max(1, CHUNK_ELEMENTS // (len(columns) * r_max))

    def rows() -> Iterator[Tensor]:
        for first in range(0, d, step):
            part = slice(first, first + step)
            yield torch.stack([_padded(s * B[part].double() - B0[part], r_max) for s, B, B0, _, _ in columns], dim=1)
        for first in range(0, k, step):
            part = slice(first, first + step)
            yield torch.stack(
                [_padded((A[:, part].double() - A0[:, part]).mT, r_max) for _, _, _, A, A0 in columns], dim=1
            )

    size = math.hypot(float(previous.B.double().norm()), float(previous.A.norm()))
    still = 0.0 if before is None else _MIN_RELATIVE_CHANGE * size
    return _geometry(gram(rows()), len(updates), still)


def _padded(part: Tensor, r_max: int) -> Tensor:
    """(rows, r) as (rows * r_max,), zeros for the ranks it lacks."""
    return pad(part, (0, r_max - part.shape[1])).reshape(-1)


def tensor_geometry(
    uploads: Sequence[Tensor],
    previous: Tensor,
    before: Tensor | None,
    dtype: torch.dtype,
    late: Mapping[int, Tensor] = MappingProxyType({}),
) -> Geometry:
    """The geometry of a tensor that is trained directly, of one shape and any float dtype.

    What was served is `previous` in `dtype`, except for the participants whose index is in `late`.
    """

    def rows() -> Iterator[Tensor]:
        flat, old = [upload.reshape(-1) for upload in uploads], previous.reshape(-1)
        step = max(1, CHUNK_ELEMENTS // (len(uploads) + 1))
        for first in range(0, len(old), step):
            part = slice(first, first + step)
            served = old[part].to(dtype).double()
            own = {index: base.reshape(-1)[part].to(dtype).double() for index, base in late.items()}
            changed = (upload[part].double() - own.get(index, served) for index, upload in enumerate(flat))
            last = [] if before is None else [old[part].double() - before.reshape(-1)[part].double()]
            yield torch.stack([*changed, *last], dim=1)

    still = 0.0 if before is None else _MIN_RELATIVE_CHANGE * float(previous.double().norm())
    return _geometry(gram(rows()), len(uploads), still)


def _geometry(inner: Tensor, participants: int, still: float) -> Geometry:
    """Split off the inner products with G: the last row, where there is one more than participants."""
    check_finite("the inner products of this round's changes", inner)
    own = inner[:participants, :participants].clone()
    if len(inner) == participants:
        return Geometry(own, None, 0.0)
    norm = math.sqrt(max(0.0, float(inner[-1, -1])))
    if norm <= still:
        return Geometry(own, torch.zeros(participants, dtype=torch.float64), 0.0)
    return Geometry(own, inner[-1, :-1].clone(), norm)
