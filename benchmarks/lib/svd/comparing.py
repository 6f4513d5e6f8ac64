"""Runs every method on one round after the other, and compares it with the optimum, the dense reference and the floor."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.lib.svd.lines import REUSED, WHOLE, Line, Where, finite, floor_operations
from benchmarks.lib.svd.measuring import Spent, once, repeated
from benchmarks.lib.svd.memory import MIB
from benchmarks.lib.svd.module_files import NAME, write_files, write_previous
from benchmarks.lib.svd.reference_svd import Optimum
from benchmarks.lib.svd.svd_baselines import BOUND, DENSE, LIBRARIES, Dense, Found, iterates, torch_sum
from benchmarks.lib.svd.synthetic_rounds import Round, largest, make, ranks_of
from benchmarks.lib.svd.worked_module import WorkedModule
from flexlora_server.aggregation.factors import initial_factors
from flexlora_server.aggregation.svd import cost
from flexlora_server.worker.aggregate_module import RoundWork

EXACT_ROUTES = cost.SAFEST_FIRST
ATTENTION = (4096, 4096)  # every other shape is an MLP's
Tell = Callable[[str], None]


class Comparison:
    """Measures rounds; remembers how long dense factorisations of a shape took.

    runs, budget: how often the engine answers, and in how many seconds. remeasure: dense factorisations are measured in every
    round, not only in the first of a shape. tell: is told what begins.
    """

    def __init__(
        self, libraries: Collection[str] | None, runs: int, budget: float, tell: Tell, remeasure: bool = False
    ) -> None:
        self._libraries = [dense for dense in LIBRARIES if libraries is None or dense.name in libraries]
        self._runs, self._budget, self._tell, self._remeasure = runs, budget, tell, remeasure
        self._known: dict[tuple[str, int, int], Spent[Found]] = {}
        for method in (DENSE, *self._libraries):
            method.begin()

    def lines(self, d: int, k: int, participants: int, mix: str, data: str) -> Iterator[Line]:
        """The round's lines, the dense reference first."""
        ranks, r_max = ranks_of(mix, participants, mlp=(d, k) != ATTENTION), min(largest(mix), d, k)
        ranks = [min(rank, r_max) for rank in ranks]
        where = Where(d, k, participants, mix, data, sum(ranks), r_max)
        self._tell(f"{d} x {k}, {participants} {mix}, {data}: making the round and its optimum")
        given = make(d, k, ranks, r_max, data)
        optimum = Optimum(given.stack, r_max)
        self._tell("the dense sum")
        total = once(lambda: torch_sum(given.stack))
        reference, measured = self._dense(DENSE, total, where)
        judge = _Judge(where, optimum, reference.seconds, measured)
        yield judge.line(DENSE.name, reference, judged=measured, sums=True)
        yield from self._by_libraries(total, judge)
        yield from self._by_us(given, judge)

    def _by_libraries(self, total: Spent[Tensor], judge: "_Judge") -> Iterator[Line]:
        for dense in self._libraries:
            if dense.first_only and (dense.name, judge.where.d, judge.where.k) in self._known:
                continue
            spent, measured = self._dense(dense, total, judge.where)
            yield judge.line(dense.name, spent, judged=measured, sums=True, iterates=not dense.for_any_rank)

    def _dense(self, method: Dense, total: Spent[Tensor], where: Where) -> tuple[Spent[Found], bool]:
        """The sum and the factorisation together; whether the latter was measured, or known of this shape."""
        shape = (method.name, where.d, where.k)
        measured = self._remeasure or not method.for_any_rank or shape not in self._known
        if measured:
            self._tell(method.name)
            self._known[shape] = once(lambda: method.factorise(total.made, where.r_max))
        known = self._known[shape]
        peak = None if total.peak_mib is None else max(total.peak_mib, _mib(where) + (known.peak_mib or 0.0))
        gflops = (known if measured else total).gflops
        return replace(known, seconds=total.seconds + known.seconds, peak_mib=peak, gflops=gflops), measured

    def _by_us(self, given: Round, judge: "_Judge") -> Iterator[Line]:
        with TemporaryDirectory(prefix="flexlora-bench-") as name:
            folder = Path(name)
            self._tell("writing the uploads")
            works = [("ours", write_files(given, folder, 1.0))]
            if iterates(given):
                certified = _certified(works[0][1])
                # Flat factors come from no global update: its directions would be nowhere near theirs.
                works += [("ours warm", certified)] if judge.where.data != "flat" else []
                works += [("ours cold", _from_nothing(certified, folder))]
            for name, work in works:
                self._tell(name)
                module = WorkedModule(work, folder / "next.safetensors")
                spent = repeated(module.once, self._runs, self._budget)
                iterated = spent.made.route not in EXACT_ROUTES
                yield judge.line(name, spent, iterates=iterated, share_of_figures=module.share_of_figures)


def _certified(work: RoundWork) -> RoundWork:
    return replace(work, spec=work.spec.model_copy(update={"error_bound": BOUND}))


def _from_nothing(work: RoundWork, folder: Path) -> RoundWork:
    """The same with the global update that a run begins with."""
    (module,), to = work.spec.modules, folder / "initial.safetensors"
    first = initial_factors(module.out_features, module.in_features, work.spec.largest_rank, 0, NAME, torch.float32)
    write_previous(to, work.spec, first)
    return replace(work, previous=to)


@dataclass(frozen=True)
class _Judge:
    """Makes a round's lines; knows its dense reference, and whether that was measured or put together."""

    where: Where
    optimum: Optimum
    dense_seconds: float
    measured: bool

    def line(
        self,
        name: str,
        spent: Spent[Found],
        judged: bool = True,
        iterates: bool = False,
        sums: bool = False,
        share_of_figures: float | None = None,
    ) -> Line:
        at, made = self.where, spent.made
        operations = floor_operations(at.d, at.k, at.total_rank, at.r_max, iterates, sums) / 1e9
        return Line(
            method=name,
            route=made.route,
            **asdict(at),
            seconds=spent.seconds,
            dense_seconds=self.dense_seconds,
            ratio_dense=self.dense_seconds / spent.seconds,
            share_of_figures=share_of_figures,
            floor_seconds=operations / spent.gflops,
            ratio_floor=spent.gflop / operations,
            error_over_optimal=finite(self.optimum.error_ratio(made.US, made.Vt)) if judged else None,
            singular_values_error=finite(self.optimum.values_error(made.S)) if judged else None,
            peak_mib=spent.peak_mib,
            certificate=finite(made.certificate),
            runs=spent.runs,
            gemm_gflops=spent.gflops,
            dense_measured=WHOLE if self.measured else REUSED,
        )


def _mib(where: Where) -> float:
    """Of the dense float32 matrix."""
    return 4 * where.d * where.k / MIB
