"""A round's changes of one module as outer products of streamed stacks, and the inner products of these.

With s B A uploaded and t B0 A0 served, the change is written in differences,

    D = s B A - t B0 A0 = dB A0 + dB dA + t B0 dA,   dB = s B - t B0,   dA = A - A0,

so that a small change is not lost in the rounding of what was served, and an unchanged upload has a change of exactly 0. A0 and
B0 are prefixes of the same global factors for everyone who is not late: the B stack holds every dB and one served B per scaling,
the A stack every dA and one A0; and as many more as there are older updates that late participants were served from.

B A is also (B/c)(c A) for any c. Before differences are taken, every row of A is given the norm of the served one: otherwise huge
factors of a small product could hide a change in the rounding of what cancels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, SliceKind, Update

CHUNK_ROWS = 512  # rows of the stacks at a time
CHUNK_ELEMENTS = 1 << 21  # of a chunk; eight times as many of a block of a Gram matrix


@dataclass(frozen=True)
class OuterProducts:
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

    def outers(self) -> list[OuterProducts]:
        """Each participant's change, and after them the last change of the global update if there is one."""
        R, r_max = sum(u.rank for u in self.updates), self.previous.A.shape[0]
        starts, column, rows, own = dict[SliceKind, int](), R, self._rows_of_A0(R), 0
        for kind, rank in self._served_ranks.items():
            starts[kind], column = column, column + rank
        changes = []
        for u in self.updates:
            changes.append(_outer((own, own, u.rank), *self._served(u, rows[id(u.base)], own, starts.get(u.kind))))
            own += u.rank
        if self.before is not None:
            after_all = R + sum(base.A.shape[0] for base in self._bases.values())
            r_before = self.before.A.shape[0]
            changes.append(_outer((column, R, r_max), (column + r_max, after_all, r_before)))
        return changes

    def left(self) -> Iterator[Tensor]:
        """The B stack, float64, some rows at a time: (<= 512, columns)."""
        for rows in self._chunks(self.previous.B.shape[0]):
            served = {kind: self._served_B(kind, rank, rows) for kind, rank in self._served_ranks.items()}
            last = [] if self.before is None else [self.previous.B[rows].double(), -self.before.B[rows].double()]
            yield torch.cat([*(self._dB(u, rows, served) for u in self.updates), *served.values(), *last], dim=1)

    def right(self) -> Iterator[Tensor]:
        """The A stack, float64, some columns at a time and transposed: (<= 512, rows)."""
        for columns in self._chunks(self.previous.A.shape[1]):
            A0 = {base: factors.A[:, columns].double() for base, factors in self._bases.items()}
            last = [] if self.before is None else [self.before.A[:, columns].double()]
            yield torch.cat([*(self._dA(u, columns, A0[id(u.base)]) for u in self.updates), *A0.values(), *last]).mT

    def _chunks(self, length: int) -> Iterator[slice]:
        step = max(16, min(CHUNK_ROWS, CHUNK_ELEMENTS // sum(u.rank for u in self.updates)))
        return (slice(first, first + step) for first in range(0, length, step))

    @cached_property
    def _balances(self) -> dict[int, Tensor]:
        """For each update (by its identity) the factors (r, 1) that give its rows of A the norms of the served ones."""
        served = {
            base: torch.linalg.vector_norm(factors.A, dim=1, dtype=torch.float64)
            for base, factors in self._bases.items()
        }
        balances = {}
        for u in self.updates:
            ratio = served[id(u.base)][: u.rank] / torch.linalg.vector_norm(u.A, dim=1, dtype=torch.float64)
            balances[id(u)] = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)[:, None]
        return balances

    @cached_property
    def _bases(self) -> dict[int, GlobalFactors]:
        """The global updates that slices were cut from: the previous one, then older ones, by the identity updates know."""
        return {id(None): self.previous} | {id(u.base): u.base for u in self.updates if u.base is not None}

    def _rows_of_A0(self, first: int) -> dict[int, int]:
        """The row of the A stack in which the A of each base begins, the first of them in row `first`."""
        lengths = [base.A.shape[0] for base in self._bases.values()]
        return dict(zip(self._bases, accumulate(lengths, initial=first), strict=False))

    @cached_property
    def _served_ranks(self) -> dict[SliceKind, int]:
        """The largest rank that was served of each kind of slice."""
        ranks = dict[SliceKind, int]()
        for u in self.updates if not self.fresh else ():
            ranks[u.kind] = max(u.rank, ranks.get(u.kind, 0))
        return ranks

    def _served(self, u: Update, row: int, own: int, start: int | None) -> list[tuple[int, int, int]]:
        return [] if start is None else [(own, row, u.rank), (start, own, u.rank)]

    def _served_B(self, kind: SliceKind, rank: int, rows: slice) -> Tensor:
        """As `slice_factors` serves it, times the scaling."""
        B = self._bases[kind.base].B[rows, :rank].double()
        return kind.scaling * (B / kind.scaling).to(self.dtype).double()

    def _dB(self, u: Update, rows: slice, served: dict[SliceKind, Tensor]) -> Tensor:
        B = u.scaling * u.B[rows].double()
        return B if self.fresh else B / self._balances[id(u)].mT - served[u.kind][:, : u.rank]

    def _dA(self, u: Update, columns: slice, A0: Tensor) -> Tensor:
        A = u.A[:, columns].double()
        return A if self.fresh else A * self._balances[id(u)] - A0[: u.rank]


def gram(stack: Iterable[Tensor], columns: Tensor | None = None) -> Tensor:
    """X[:, columns]^T X of a matrix that is streamed in chunks of rows, float64; X^T X where `columns` is None."""
    total: Tensor | None = None
    for chunk in stack:
        left = chunk.mT if columns is None else chunk[:, columns].mT
        total = left @ chunk if total is None else total.addmm_(left, chunk)
    assert total is not None, "a module has rows"
    return total


def inner_products(changes: Changes) -> tuple[Tensor, Tensor]:
    """Of all pairs of sums of outer products, their Frobenius inner products (n, n); and each one's reach (n,); float64.

    <sum b_p a_p^T, sum b_q a_q^T> = sum over p, q of <b_p, b_q> <a_p, a_q>. The reach is the sum of |b_p| |a_p|: the norm
    each sum would have if nothing in it cancelled. Gram matrices are made for some participants at a time.
    """
    outers = changes.outers()
    columns, rows = torch.cat([o.columns for o in outers]), torch.cat([o.rows for o in outers])
    owner = torch.repeat_interleave(torch.tensor([len(o.rows) for o in outers]))
    lines, reaches = [], []
    for group in _grouped(outers, int(columns.max()) + 1):
        own_columns, own_rows = _unique([o.columns for o in group]), _unique([o.rows for o in group])
        left, right = gram(changes.left(), own_columns), gram(changes.right(), own_rows)
        for o in group:
            at, across = torch.searchsorted(own_columns, o.columns), torch.searchsorted(own_rows, o.rows)
            products = left[at][:, columns] * right[across][:, rows]
            lines.append(left.new_zeros(len(outers)).index_add_(0, owner, products.sum(0)))
            reaches.append((left[at, o.columns] * right[across, o.rows]).clamp(min=0).sqrt().sum())
    products_ = torch.stack(lines)
    return (products_ + products_.mT) / 2, torch.stack(reaches)


def _unique(indices: Sequence[Tensor]) -> Tensor:
    """All indices, each once, ascending."""
    unique: Tensor = torch.unique(torch.cat(list(indices)))
    return unique


def _grouped(outers: Sequence[OuterProducts], columns: int) -> Iterator[list[OuterProducts]]:
    """As many at a time as have a Gram matrix of at most 8 `CHUNK_ELEMENTS`, beside what all share."""
    limit, group, taken = 8 * CHUNK_ELEMENTS // columns, list[OuterProducts](), 0
    for o in outers:
        if group and taken + len(o.columns) > limit:
            yield group
            group, taken = [], 0
        group.append(o)
        taken += len(o.columns)
    yield group


def _outer(*runs: tuple[int, int, int]) -> OuterProducts:
    """Outer products from runs of (first column, first row, length)."""
    columns = [torch.arange(column, column + length) for column, _, length in runs]
    rows = [torch.arange(row, row + length) for _, row, length in runs]
    return OuterProducts(torch.cat(columns), torch.cat(rows))
