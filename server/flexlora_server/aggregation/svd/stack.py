"""A sum of low-rank terms, W = sum of s_b B_b A_b, and the products with it that need no dense matrix.

The terms stay where they are, memory-mapped uploads in any float dtype included: every product reads them in pieces and
converts piece by piece, so what is in memory depends on the module's shape and the sum of ranks squared, never on all terms.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
CHUNK_ELEMENTS = 1 << 18  # of a float64 piece that is multiplied at once: 2 MiB, a core's cache
GRAM_STRIPES = 4  # in which a symmetric product is computed
# Columns of a block from which on terms are copied side by side to be multiplied with it, so many of their columns at a time:
# products with the few columns of one term would be bound by reading and writing the result
WIDE, WIDE_COLUMNS, ALONE = 128, 256, 128
GROUP_COLUMNS = 512  # columns of terms put side by side before they are multiplied into a dense matrix
# Terms whose products are added up in their dtype before the sum is added to the others in float64: rounding of a running
# float32 sum grows with the number of terms, and in proportion to it where many are alike
SUMMED_AT_ONCE = 32


@dataclass(frozen=True)
class Term:
    """`scale * B @ A`, with B (d, r) and A (r, k) of any float dtype."""

    B: Tensor
    A: Tensor
    scale: float


class Stack:
    """W (d, k) as a sum of terms; R is the sum of their ranks."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)

    def plus(self, B: Tensor, A: Tensor) -> "Stack":
        """This sum and one more term, B @ A."""
        return Stack([*self.terms, Term(B, A, 1.0)])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(d, R, k)."""
        return self.terms[0].B.shape[0], sum(term.A.shape[0] for term in self.terms), self.terms[0].A.shape[1]

    @property
    def device(self) -> torch.device:
        return self.terms[0].A.device

    @property
    def scales(self) -> Tensor:
        """Each column's scale (R,), float64."""
        scales = [torch.full((t.A.shape[0],), t.scale, dtype=torch.float64, device=self.device) for t in self.terms]
        return torch.cat(scales)

    @cached_property
    def _columns(self) -> Tensor:
        """|s_b b_j| |a_j| of every column (R,), to float32."""
        return torch.cat([abs(term.scale) * _norms(term.B, 0) * _norms(term.A, 1) for term in self.terms])

    @property
    def rank_one_norms(self) -> float:
        """The sum of |s_b b_j| |a_j| over all columns: how large W would be if nothing cancelled."""
        return float(self._columns.sum())

    @property
    def typical_norm(self) -> float:
        """The root of the sum of their squares: how large W is if its terms are uncorrelated."""
        return float(self._columns.norm())

    def grams(self) -> tuple[Tensor, Tensor]:
        """(B^T B, A A^T), both (R, R) float64, of the factors side by side, without their scales."""
        R = self.shape[1]
        of_B = torch.zeros(R, R, dtype=torch.float64, device=self.device)
        of_A = torch.zeros_like(of_B)
        for _, piece in self._rows_of_B():
            _add_gram(of_B, piece)
        for _, piece in self._columns_of_A():
            _add_gram(of_A, piece.mT)
        return _mirrored(of_B), _mirrored(of_A)

    def B_times(self, X: Tensor) -> Tensor:
        """[B_1 B_2 ...] @ X: (d, n) float64 for X (R, n), without the scales."""
        result = torch.empty(self.shape[0], X.shape[1], dtype=torch.float64, device=self.device)
        for rows, piece in self._rows_of_B():
            torch.mm(piece, X, out=result[rows])
        return result

    def times_A(self, X: Tensor) -> Tensor:
        """X @ [A_1; A_2; ...]: (n, k) float64 for X (n, R), without the scales."""
        result = torch.empty(X.shape[0], self.shape[2], dtype=torch.float64, device=self.device)
        for columns, piece in self._columns_of_A():
            result[:, columns] = X @ piece
        return result

    def factors(self) -> tuple[Tensor, Tensor]:
        """All terms side by side in float64, the scales on B: B (d, R), A (R, k)."""
        B = torch.cat([term.scale * term.B.double() for term in self.terms], dim=1)
        return B, torch.cat([term.A.double() for term in self.terms], dim=0)

    def dense(self) -> Tensor:
        """W (d, k), float64."""
        d, _, k = self.shape
        W = torch.zeros(d, k, dtype=torch.float64, device=self.device)
        for terms in _grouped(self.terms, GROUP_COLUMNS):
            W.addmm_(*Stack(terms).factors())
        return W

    def times(self, V: Tensor) -> Tensor:
        """W @ V: (d, n) for V (k, n), multiplied in V's dtype."""
        if V.shape[1] >= WIDE:
            return self._wide(V, lambda B, A: (A.mT, B.mT))

        def product(terms: Sequence[Term]) -> Tensor:
            part = torch.zeros(self.shape[0], V.shape[1], dtype=V.dtype, device=self.device)
            for term in terms:
                part.addmm_(term.B.to(V.dtype), term.A.to(V.dtype) @ V, alpha=term.scale)
            return part

        return _summed(product, self.terms)

    def transposed_times(self, Q: Tensor) -> Tensor:
        """W^T @ Q: (k, n) for Q (d, n), multiplied in Q's dtype."""
        if Q.shape[1] >= WIDE:
            return self._wide(Q, lambda B, A: (B, A))
        Qt = Q.mT.contiguous()

        def product(terms: Sequence[Term]) -> Tensor:
            part = torch.zeros(Q.shape[1], self.shape[2], dtype=Q.dtype, device=self.device)
            for term in terms:
                part.addmm_(Qt @ term.B.to(Q.dtype), term.A.to(Q.dtype), alpha=term.scale)
            return part

        return _summed(product, self.terms).mT

    def _wide(self, X: Tensor, sides: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """(X^T first second)^T over groups of terms; `sides` puts B (d, c) and A (c, k) in the order of the product."""
        Xt = X.mT.contiguous()

        def product(groups: Sequence[list[Term]]) -> Tensor:
            part = None
            for terms in groups:
                first, second = sides(
                    _joined([t.B.to(X.dtype) for t in terms], 1), _joined([t.A.to(X.dtype) for t in terms], 0)
                )
                inner = (Xt @ first).mul_(Stack(terms).scales.to(X.dtype))
                part = inner @ second if part is None else part.addmm_(inner, second)
            assert part is not None
            return part

        return _summed(product, list(_wide_first(self.terms))).mT

    def _rows_of_B(self) -> Iterator[tuple[slice, Tensor]]:
        """[B_1 B_2 ...] as float64 pieces of whole rows."""
        d, R, _ = self.shape
        for rows in _pieces(d, R):
            piece = torch.empty(rows.stop - rows.start, R, dtype=torch.float64, device=self.device)
            _fill(piece.mT, [term.B[rows].mT for term in self.terms])
            yield rows, piece

    def _columns_of_A(self) -> Iterator[tuple[slice, Tensor]]:
        """[A_1; A_2; ...] as float64 pieces of whole columns."""
        _, R, k = self.shape
        for columns in _pieces(k, R):
            piece = torch.empty(R, columns.stop - columns.start, dtype=torch.float64, device=self.device)
            _fill(piece, [term.A[:, columns] for term in self.terms])
            yield columns, piece


def _add_gram(total: Tensor, piece: Tensor) -> None:
    """Add piece^T piece (R, R) to the blocks of `total` on and above the diagonal: in stripes, 5/8 of the work of the whole."""
    R = total.shape[0]
    step = max(64, -(-R // GRAM_STRIPES))
    for start in range(0, R, step):
        stripe = slice(start, start + step)
        total[stripe, start:].addmm_(piece[:, stripe].mT, piece[:, start:])


def _mirrored(upper: Tensor) -> Tensor:
    return torch.triu(upper) + torch.triu(upper, 1).mT


def _norms(X: Tensor, dim: int) -> Tensor:
    """Norms along `dim`, float64: squared and summed in float32 while that holds them, three times faster than norm()."""
    norms: Tensor = X.float().square().sum(dim).sqrt().double()
    if X.dtype == torch.float64 or not bool((torch.isfinite(norms) & (norms > 0)).all()):  # too large, or too small
        norms = torch.linalg.vector_norm(X, dim=dim, dtype=torch.float64)
    return norms


def _pieces(length: int, R: int) -> Iterator[slice]:
    step = max(64, CHUNK_ELEMENTS // R)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _fill(piece: Tensor, parts: Sequence[Tensor]) -> None:
    """Copy `parts` below one another into `piece`, converting on the way."""
    at = 0
    for part in parts:
        piece[at : at + part.shape[0]].copy_(part)
        at += part.shape[0]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _summed(product: Callable[[Sequence[T]], Tensor], terms: Sequence[T]) -> Tensor:
    """The product of all terms, in its dtype: of `SUMMED_AT_ONCE` at a time, which are added up in float64."""
    total = product(terms[:SUMMED_AT_ONCE])
    dtype = total.dtype
    for first in range(SUMMED_AT_ONCE, len(terms), SUMMED_AT_ONCE):
        total = total.double().add_(product(terms[first : first + SUMMED_AT_ONCE]))
    return total.to(dtype)


def _grouped(terms: Sequence[Term], at_least: int) -> Iterator[list[Term]]:
    """The terms in order, as many at a time as have `at_least` columns together."""
    group: list[Term] = []
    columns = 0
    for term in terms:
        group.append(term)
        columns += term.A.shape[0]
        if columns >= at_least:
            yield group
            group, columns = [], 0
    if group:
        yield group


def _wide_first(terms: Sequence[Term]) -> Iterator[list[Term]]:
    """Those of many columns alone, where they need no copy, then the others in groups."""
    yield from ([term] for term in terms if term.A.shape[0] >= ALONE)
    yield from _grouped([term for term in terms if term.A.shape[0] < ALONE], WIDE_COLUMNS)
