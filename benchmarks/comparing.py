"""Every method on one round after the other, each compared with the round's optimum, its dense reference and its floor."""

import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.contenders import BOUND, DENSE, LIBRARIES, Dense, Found, iterates, ours
from benchmarks.lines import REUSED, WHOLE, Line, Where, floor_operations
from benchmarks.measuring import MIB, Spent, once, repeated
from benchmarks.optimum import Optimum
from benchmarks.rounds import Round, largest, make, ranks_of

ATTENTION = (4096, 4096)  # every other shape is an MLP's


@dataclass(frozen=True)
class Reference:
    """The dense reference of one round."""

    seconds: float
    measured: str


class Comparison:
    """Measures rounds; remembers how long dense factorisations of a shape took."""

    def __init__(self, libraries: Collection[str] | None, runs: int, budget: float) -> None:
        self._libraries = [dense for dense in LIBRARIES if libraries is None or dense.name in libraries]
        self._runs, self._budget = runs, budget
        self._known: dict[tuple[str, int, int], Spent[Found]] = {}
        for method in (DENSE, *self._libraries):
            method.begin()

    def lines(self, d: int, k: int, participants: int, mix: str, data: str) -> Iterator[Line]:
        """The round's lines, the dense reference first."""
        ranks, r_max = ranks_of(mix, participants, mlp=(d, k) != ATTENTION), min(largest(mix), d, k)
        ranks = [min(rank, r_max) for rank in ranks]
        where = Where(d, k, participants, mix, data, sum(ranks), r_max)
        _tell(where, "making the round")
        given = make(d, k, ranks, r_max, data)
        judge = _Judge(where, Optimum(given.stack, r_max))
        _tell(where, DENSE.name)
        spent, measured = self._dense(DENSE, once(lambda: DENSE.total(given.stack)), where)
        reference = Reference(spent.seconds, measured)
        yield judge.line(DENSE.name, spent, reference, judged=measured == WHOLE)
        yield from self._by_libraries(given, judge, reference)
        yield from self._by_us(given, judge, reference)

    def _by_libraries(self, given: Round, judge: "_Judge", reference: Reference) -> Iterator[Line]:
        if not self._libraries:
            return
        _tell(judge.where, "the sum by numpy")
        total = once(lambda: self._libraries[0].total(given.stack))
        for dense in self._libraries:
            _tell(judge.where, dense.name)
            spent, measured = self._dense(dense, total, judge.where)
            yield judge.line(dense.name, spent, reference, judged=measured == WHOLE, certified=not dense.for_any_rank)

    def _by_us(self, given: Round, judge: "_Judge", reference: Reference) -> Iterator[Line]:
        asked: list[tuple[str, float, Tensor | None]] = [("ours", 1.0, None)]
        if iterates(given):
            asked += [("ours warm", BOUND, given.V), ("ours cold", BOUND, None)]
        for name, bound, start in asked:
            _tell(judge.where, name)
            spent = repeated(partial(ours, given, bound, start), self._runs, self._budget)
            yield judge.line(name, spent, reference, certified=spent.made.route == "subspace")

    def _dense(self, method: Dense, total: Spent[Any], where: Where) -> tuple[Spent[Found], str]:
        """The sum and the factorisation together; the latter measured, or known of this shape."""
        shape, measured = (method.name, where.d, where.k), REUSED
        if shape not in self._known or not method.for_any_rank:
            self._known[shape], measured = once(lambda: method.factorise(total.made, where.r_max)), WHOLE
        known = self._known[shape]
        summed = None if total.peak_mib is None else max(total.peak_mib, _mib(where) + (known.peak_mib or 0.0))
        seconds, gflops = total.seconds + known.seconds, known.gflops if measured == WHOLE else total.gflops
        return replace(known, seconds=seconds, peak_mib=summed, gflops=gflops), measured


@dataclass(frozen=True)
class _Judge:
    """Makes a round's lines."""

    where: Where
    optimum: Optimum

    def line(
        self, name: str, spent: Spent[Found], reference: Reference, judged: bool = True, certified: bool = False
    ) -> Line:
        at, found = self.where, spent.made
        floor = floor_operations(at.d, at.k, at.total_rank, at.r_max, certified) / spent.gflops / 1e9
        return Line(
            method=name,
            route=found.route,
            **asdict(at),
            seconds=spent.seconds,
            dense_seconds=reference.seconds,
            ratio_dense=reference.seconds / spent.seconds,
            floor_seconds=floor,
            ratio_floor=spent.seconds / floor,
            error_over_optimal=self.optimum.error_ratio(found.US, found.Vt) if judged else None,
            singular_values_error=self.optimum.values_error(found.S) if judged else None,
            peak_mib=spent.peak_mib,
            certificate=found.certificate,
            runs=spent.runs,
            gemm_gflops=spent.gflops,
            dense_measured=reference.measured,
        )


def _mib(where: Where) -> float:
    """Of the dense float32 matrix."""
    return 4 * where.d * where.k / MIB


def _tell(where: Where, what: str) -> None:
    print(
        f"{where.d} x {where.k}, {where.participants} {where.ranks}, {where.data}: {what}", file=sys.stderr, flush=True
    )
