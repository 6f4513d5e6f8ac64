"""Aggregates a round: reads the accepted uploads module by module from their files, writes the new global update.

One LAPACK thread a module, modules side by side. No more than a pool works on and a few that wait to be written are in memory,
never a whole upload. Results are written in the order of the modules, so the bytes do not depend on who worked on them.
"""

from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from flexlora_server.adapter_files.global_adapter_torch import StoredWriter, served_dtype
from flexlora_server.aggregation.extra import initial_extra
from flexlora_server.aggregation.factors import initial_factors
from flexlora_server.aggregation.filters.from_definition import rules
from flexlora_server.aggregation.filters.reweight import Shares, reweighted
from flexlora_server.aggregation.geometry.projection import cosines
from flexlora_server.worker import metrics as figures
from flexlora_server.worker.aggregate_module import Opened, Work, exactly
from flexlora_server.worker.executors.base import Pool, Threads
from flexlora_server.worker.metrics import Seen
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import AggregationMetrics, CosineRange, ModuleMetrics

__all__ = ["Work", "write_aggregate", "write_initial"]


def write_initial(spec: RunSpec, file: BinaryIO) -> None:
    """Round 0: B = 0 and one seeded A of the largest rank, of which every rank gets a prefix."""
    writer, dtype = StoredWriter(file, spec), served_dtype(spec)
    for module in spec.modules:
        d, k = module.out_features, module.in_features
        writer.module(module.name, initial_factors(d, k, spec.largest_rank, spec.seed, module.name, dtype))
    for extra in spec.extra:
        writer.extra(extra.name, initial_extra(extra.shape, extra.init, spec.seed, extra.name))
    writer.close()


def write_aggregate(
    work: Work, file: BinaryIO, alive: Callable[[], None], pool: Pool | None = None
) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
    """The next global update, from the accepted inputs in their given order and the previous one.

    `alive` is called between modules: it renews the lease, and raises to stop the work. `pool`: who works on the modules;
    the threads of this process where none is given.

    Raises:
        AggregationError: the inputs cannot be aggregated.
    """
    return _Round(work, alive, pool or Threads()).write(file)


class _Round:
    """One aggregation under way."""

    def __init__(self, work: Work, alive: Callable[[], None], pool: Pool) -> None:
        self._work, self._alive, self._pool, self._spec = work, alive, pool, work.spec
        self._opened = Opened(work)
        self._ranges: dict[str, CosineRange | None] = {}
        self._whole: Seen | None = None

    def write(self, file: BinaryIO) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
        shares = self._filtered() if self._spec.robust else self._as_given()
        writer, metrics = StoredWriter(file, self._spec), []
        task = partial(Opened.aggregate, shares=shares)
        for module, done in self._pool.over_modules(self._opened, task, self._alive):
            writer.module(module.name, done.aggregate.factors)
            if done.seen is not None:
                self._see(module.name, done.seen)
            found = figures.of_module(self._spec, module, done.aggregate, self._ranges[module.name])
            metrics.append(found.model_copy(update={"seconds": done.seconds, "bytes_read": done.bytes_read}))
        for extra in self._spec.extra:
            self._alive()
            if not self._spec.robust:
                self._see(extra.name, exactly(self._opened.extra_geometry(extra.name)))
            writer.extra(extra.name, self._opened.average(extra.name, shares))
        writer.close()
        assert self._whole is not None, "a run has modules"
        return tuple(metrics), figures.of_updates(self._work.inputs, shares, self._whole)

    def _see(self, name: str, seen: Seen) -> None:
        """Keep of a tensor's geometry what is reported, and add it to that of the whole updates."""
        self._ranges[name] = figures.cosine_range(cosines(seen.geometry))
        self._whole = seen if self._whole is None else self._whole + seen

    def _as_given(self) -> Shares:
        weights = tuple(given.weight for given in self._work.inputs)
        return Shares(weights, (0.0,) * len(weights), ((),) * len(weights))

    def _filtered(self) -> Shares:
        """A pass over all tensors for the geometry of the whole updates, and what the run's filters make of it."""
        for module, geometry in self._pool.over_modules(self._opened, Opened.geometry, self._alive):
            self._see(module.name, exactly(geometry))
        for extra in self._spec.extra:
            self._alive()
            self._see(extra.name, exactly(self._opened.extra_geometry(extra.name)))
        assert self._whole is not None, "a run has modules"
        weights = [given.weight for given in self._work.inputs]
        return reweighted(weights, self._whole.geometry, rules(self._spec.robust), self._work.past_norms)
