"""A round's changes of one module as outer products of streamed stacks, and the inner products of these.

With s B A uploaded and t B0 A0 served, the change is written in differences,

    D = s B A - t B0 A0 = dB A0 + dB dA + t B0 dA,   dB = s B - t B0,   dA = A - A0,

so that a participant that changed little is not lost in the rounding of what it was served, and one that changed
nothing has a change of exactly 0. A0 and B0 are prefixes of the same global factors for everyone: the B stack holds
every dB and one served B per scaling, the A stack every dA and one A0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update

CHUNK = 512


@dataclass(frozen=True)
class Outer:
    """The matrix sum over p of B_stack[:, columns[p]] A_stack[rows[p], :]."""

    columns: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Changes:
    """The stacks of one module; `before` is the global update one round before `previous`; fresh: nothing was served."""

    updates: Sequence[Update]
    previous: GlobalFactors
    before: GlobalFactors | None
    dtype: torch.dtype
    fresh: bool

    def outers(self) -> list[Outer]:
        """Each participant's change, and after them the last change of the global update if there is one."""
        R, r_max = sum(u.rank for u in self.updates), self.previous.A.shape[0]
        starts, column, own = dict[float, int](), R, 0
        for scaling, rank in self._served_ranks.items():
            starts[scaling], column = column, column + rank
        found = []
        for u in self.updates:
            found.append(_outer((own, own, u.rank), *self._served(u.rank, R, own, starts.get(u.served_scaling))))
            own += u.rank
        if self.before is not None:
            r_before = self.before.A.shape[0]
            found.append(_outer((column, R, r_max), (column + r_max, R + r_max, r_before)))
        return found

    def left(self) -> Iterator[Tensor]:
        """The B stack, float64, some rows at a time: (<= 512, columns)."""
        for first in range(0, self.previous.B.shape[0], CHUNK):
            rows = slice(first, first + CHUNK)
            served = {t: self._served_B(t, rank, rows) for t, rank in self._served_ranks.items()}
            last = [] if self.before is None else [self.previous.B[rows].double(), -self.before.B[rows].double()]
            yield torch.cat([*(self._dB(u, rows, served) for u in self.updates), *served.values(), *last], dim=1)

    def right(self) -> Iterator[Tensor]:
        """The A stack, float64, some columns at a time and transposed: (<= 512, rows)."""
        for first in range(0, self.previous.A.shape[1], CHUNK):
            columns = slice(first, first + CHUNK)
            A0 = self.previous.A[:, columns].double()
            last = [] if self.before is None else [self.before.A[:, columns].double()]
            yield torch.cat([*(self._dA(u, columns, A0) for u in self.updates), A0, *last]).mT

    @cached_property
    def _served_ranks(self) -> dict[float, int]:
        """The largest rank that was served at each scaling."""
        ranks = dict[float, int]()
        for u in self.updates if not self.fresh else ():
            ranks[u.served_scaling] = max(u.rank, ranks.get(u.served_scaling, 0))
        return ranks

    def _served(self, rank: int, R: int, own: int, start: int | None) -> list[tuple[int, int, int]]:
        return [] if start is None else [(own, R, rank), (start, own, rank)]

    def _served_B(self, scaling: float, rank: int, rows: slice) -> Tensor:
        """As `slice_factors` serves it, times the scaling."""
        return scaling * (self.previous.B[rows, :rank].double() / scaling).to(self.dtype).double()

    def _dB(self, u: Update, rows: slice, served: dict[float, Tensor]) -> Tensor:
        B = u.scaling * u.B[rows].double()
        return B if self.fresh else B - served[u.served_scaling][:, : u.rank]

    def _dA(self, u: Update, columns: slice, A0: Tensor) -> Tensor:
        A = u.A[:, columns].double()
        return A if self.fresh else A - A0[: u.rank]


def gram(stack: Iterable[Tensor]) -> Tensor:
    """X^T X of a matrix that comes some rows at a time, float64."""
    products = (chunk.mT @ chunk for chunk in stack)
    total = next(products)
    for product in products:
        total += product
    return total


def inner_products(left: Tensor, right: Tensor, outers: Sequence[Outer]) -> Tensor:
    """Frobenius inner products of all pairs, (n, n) float64, from the Gram matrices of the B and the A stack.

    <sum b_p a_p^T, sum b_q a_q^T> = sum over p, q of <b_p, b_q> <a_p, a_q>.
    """
    columns, rows = torch.cat([o.columns for o in outers]), torch.cat([o.rows for o in outers])
    owner = torch.repeat_interleave(torch.tensor([len(o.rows) for o in outers]))
    lines = []
    for o in outers:
        products = left[o.columns][:, columns] * right[o.rows][:, rows]
        lines.append(left.new_zeros(len(outers)).index_add_(0, owner, products.sum(0)))
    found = torch.stack(lines)
    return (found + found.mT) / 2


def reaches(left: Tensor, right: Tensor, outers: Sequence[Outer]) -> Tensor:
    """Sum over p of |b_p| |a_p|, (n,): the norm each sum would have if nothing in it cancelled."""
    b, a = left.diagonal().sqrt(), right.diagonal().sqrt()
    return torch.stack([(b[o.columns] * a[o.rows]).sum() for o in outers])


def _outer(*runs: tuple[int, int, int]) -> Outer:
    """Of runs of (first column, first row, length)."""
    columns = [torch.arange(column, column + length) for column, _, length in runs]
    rows = [torch.arange(row, row + length) for _, row, length in runs]
    return Outer(torch.cat(columns), torch.cat(rows))
