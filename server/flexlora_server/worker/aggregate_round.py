"""Aggregates a round: reads the accepted uploads module by module from their files, writes the new global update.

One LAPACK thread a module, several modules at a time. Only the modules at work and a few finished ones are in memory, never a
whole upload. Results are written in the order of the modules, so the bytes do not depend on the executor.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from flexlora_server.adapter_files.global_adapter_torch import GlobalAdapterWriter, TorchGlobalAdapter, served_dtype
from flexlora_server.aggregation.extra_tensors import initial_extra
from flexlora_server.aggregation.factors import initial_factors
from flexlora_server.aggregation.filters.from_definition import rules
from flexlora_server.aggregation.filters.reweight import Shares, apply_filters
from flexlora_server.aggregation.geometry.projection import cosines
from flexlora_server.aggregation.start import start_extra, start_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.worker import metrics
from flexlora_server.worker.aggregate_module import ModuleAggregator, ModuleResult, RoundWork
from flexlora_server.worker.executors.base import Executor, ThreadExecutor
from flexlora_server.worker.metrics import UpdateGeometry
from flexlora_server.worker.software import software
from flexlora_shared.messages.runs import ModuleSpec, RunSpec
from flexlora_shared.messages.status import AggregationMetrics, CosineRange, ModuleMetrics
from flexlora_shared.ranks import capped

__all__ = ["RoundWork", "write_aggregate", "write_initial", "write_start"]


def write_initial(spec: RunSpec, file: BinaryIO) -> None:
    """Write round 0: B = 0 and one seeded A of the largest rank, of which every rank gets a prefix."""
    writer, dtype = GlobalAdapterWriter(file, spec), served_dtype(spec)
    for module in spec.modules:
        d, k, rank = module.out_features, module.in_features, capped(module, spec.largest_rank)
        writer.module(module.name, initial_factors(d, k, rank, spec.seed, module.name, dtype))
    for extra in spec.extra:
        writer.extra(extra.name, initial_extra(extra.shape, extra.init, spec.seed, extra.name))
    writer.close()


def write_start(spec: RunSpec, source: Path, file: BinaryIO, check_alive: Callable[[], None]) -> None:
    """Write round 0 of a run that starts from the stored global update in `source`, of the same modules and extra tensors.

    Raises:
        AggregationError: a module's update or an extra tensor exceeds the run's norm bound, or does not fit into its dtype.
    """
    writer, dtype, stored = GlobalAdapterWriter(file, spec), served_dtype(spec), TorchGlobalAdapter(source)
    one_rank = strategy(spec.strategy).one_rank
    for module in spec.modules:
        check_alive()
        d, k, rank = module.out_features, module.in_features, capped(module, spec.largest_rank)
        factors = start_factors(
            stored.factors(module.name),
            initial_factors(d, k, rank, spec.seed, module.name, dtype),
            one_rank=one_rank,
            norm_bound=spec.norm_bound,
            dtype=dtype,
        )
        writer.module(module.name, factors)
    for extra in spec.extra:
        writer.extra(extra.name, start_extra(stored.extra(extra.name), spec.norm_bound))
    writer.close()


def write_aggregate(
    work: RoundWork, file: BinaryIO, check_alive: Callable[[], None], executor: Executor | None = None
) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
    """Write the next global update, from the accepted inputs in their given order and the previous one.

    `check_alive` is called between modules and raises to stop the work. `executor`: runs the modules; the threads of this
    process where it is None.

    Raises:
        AggregationError: the inputs cannot be aggregated.
    """
    return _Round(work, check_alive, executor or ThreadExecutor()).write(file)


class _Round:
    """The state of one aggregation."""

    def __init__(self, work: RoundWork, check_alive: Callable[[], None], executor: Executor) -> None:
        self._work, self._check_alive, self._executor, self._spec = work, check_alive, executor, work.spec
        self._aggregator = ModuleAggregator(work)
        self._ranges: dict[str, CosineRange | None] = {}
        self._total: UpdateGeometry | None = None

    def write(self, file: BinaryIO) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
        shares = self._filtered() if self._spec.robust else self._unfiltered()
        writer, modules = GlobalAdapterWriter(file, self._spec), []
        task = partial(ModuleAggregator.aggregate, shares=shares)
        for module, result in self._executor.map_modules(self._aggregator, task, self._check_alive):
            writer.module(module.name, result.aggregate.factors)
            if result.geometry is not None:
                self._add_geometry(module.name, result.geometry)
            modules.append(self._module_metrics(module, result))
        for extra in self._spec.extra:
            self._check_alive()
            if not self._spec.robust:
                self._add_geometry(extra.name, UpdateGeometry.exact(self._aggregator.extra_geometry(extra.name)))
            writer.extra(extra.name, self._aggregator.average(extra.name, shares))
        writer.close()
        assert self._total is not None, "a run has modules"
        updates = metrics.update_metrics(self._work.inputs, shares, self._total)
        return tuple(modules), updates.model_copy(update={"software": software(self._work.device)})

    def _module_metrics(self, module: ModuleSpec, result: ModuleResult) -> ModuleMetrics:
        computed = metrics.module_metrics(self._spec, module, result.aggregate, self._ranges[module.name])
        return computed.model_copy(update={"seconds": result.seconds, "bytes_read": result.bytes_read})

    def _add_geometry(self, name: str, geometry: UpdateGeometry) -> None:
        """Keep the range of a tensor's cosines for its metrics, and add its geometry to the total."""
        self._ranges[name] = metrics.cosine_range(cosines(geometry.geometry))
        self._total = geometry if self._total is None else self._total + geometry

    def _unfiltered(self) -> Shares:
        weights = tuple(update.weight for update in self._work.inputs)
        return Shares(weights, (0.0,) * len(weights), ((),) * len(weights))

    def _filtered(self) -> Shares:
        """The shares after the run's filters, which need the geometry of all tensors: one pass over them before the other."""
        for module, geometry in self._executor.map_modules(
            self._aggregator, ModuleAggregator.geometry, self._check_alive
        ):
            self._add_geometry(module.name, UpdateGeometry.exact(geometry))
        for extra in self._spec.extra:
            self._check_alive()
            self._add_geometry(extra.name, UpdateGeometry.exact(self._aggregator.extra_geometry(extra.name)))
        assert self._total is not None, "a run has modules"
        weights = [update.weight for update in self._work.inputs]
        return apply_filters(weights, self._total.geometry, rules(self._spec.robust), self._work.past_norms)
