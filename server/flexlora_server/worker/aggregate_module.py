"""Aggregates one tensor or module of a round at a time, independently of all others.

Executors call `ModuleAggregator` for one module at a time, in threads of one process or in processes on other machines.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter, served_dtype
from flexlora_server.adapter_files.round_uploads import InputUpdate, RoundUploads
from flexlora_server.aggregation.extra_tensors import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.filters.reweight import Shares
from flexlora_server.aggregation.filters.split import rebased, split, split_tensors
from flexlora_server.aggregation.geometry.gram_blocks import geometry_from_products
from flexlora_server.aggregation.geometry.projection import projected_geometry
from flexlora_server.aggregation.geometry.update_geometry import (
    Geometry,
    factor_geometry,
    module_geometry,
    tensor_geometry,
)
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.truncate import Aggregate, without_truncation
from flexlora_server.worker.metrics import UpdateGeometry
from flexlora_shared.messages.runs import ModuleSpec, RunSpec

# Sum of the updates' ranks up to which metrics use inner products of whole changes (filters always do). Above it they use
# projections on the leading directions of the result, which cost less than the result did.
MAX_WHOLE_COLUMNS = 768


@dataclass(frozen=True)
class RoundWork:
    """The frozen inputs of one aggregation, and where to run it.

    previous: the stored global update that participants were served; before: the one published a round earlier, if any.
    past_norms: the past rounds' median change norms, newest last.
    """

    spec: RunSpec
    inputs: Sequence[InputUpdate]
    previous: Path
    before: Path | None = None
    past_norms: Sequence[float] = ()
    threads: int = 1
    device: str = "cpu"

    def with_paths(self, locate: Callable[[Path], Path]) -> "RoundWork":
        """The same work with every path replaced by `locate(path)`."""
        inputs = [
            replace(update, path=locate(update.path), base=None if update.base is None else locate(update.base))
            for update in self.inputs
        ]
        before = None if self.before is None else locate(self.before)
        return replace(self, inputs=inputs, previous=locate(self.previous), before=before)


@dataclass(frozen=True)
class ModuleResult:
    """The aggregate of one module.

    geometry: of the updates' changes; None where filters have needed it in an earlier pass.
    bytes_read: size of the updates' factors. seconds: wall time.
    """

    aggregate: Aggregate
    geometry: UpdateGeometry | None
    seconds: float
    bytes_read: int


class ModuleAggregator:
    """Opens the files of one aggregation once; every result depends only on them and on the arguments."""

    def __init__(self, work: RoundWork) -> None:
        self.work, self._spec = work, work.spec
        self._previous = TorchGlobalAdapter(work.previous)
        self._before = None if work.before is None else TorchGlobalAdapter(work.before)
        self._strategy, self._dtype = strategy(work.spec.strategy), served_dtype(work.spec)
        self._fresh = self._strategy.agents_train == "fresh"
        self._uploads = RoundUploads(work.spec, [_measured_from(update, work.previous) for update in work.inputs])

    def aggregate(self, module: ModuleSpec, shares: Shares) -> ModuleResult:
        """A module of the next global update, and the geometry of its changes unless filters have needed it before."""
        started = time.perf_counter()
        updates, previous = self._uploads.updates(module.name), self._previous.factors(module.name)
        if shares.any_upload_counts:
            aggregate = self._on_device(split(updates, shares, previous, self._dtype, self._fresh), previous)
        else:
            aggregate = without_truncation(previous)
        bytes_read = sum(update.A.nbytes + update.B.nbytes for update in updates)
        geometry = None if self._spec.robust else self.figures(module, updates, previous, aggregate)
        aggregate = replace(aggregate, products=None)  # large, and not for others
        return ModuleResult(aggregate, geometry, time.perf_counter() - started, bytes_read)

    def geometry(self, module: ModuleSpec) -> Geometry:
        """The exact geometry of a module's changes; with the last change of the global update where the run has filters."""
        before = None if self._before is None or not self._spec.robust else self._before.factors(module.name)
        updates, previous = self._uploads.updates(module.name), self._previous.factors(module.name)
        if self._strategy.averages_factors:
            return factor_geometry(updates, previous, before, self._dtype)
        return module_geometry(updates, previous, before, self._dtype, self._fresh)

    def extra_geometry(self, name: str) -> Geometry:
        """The exact geometry of the changes of a tensor beside LoRA."""
        before = None if self._before is None or not self._spec.robust else self._before.extra(name)
        uploads, late = list(self._uploads.extra(name)), self._uploads.late_extra(name)
        return tensor_geometry(uploads, self._previous.extra(name), before, self._dtype, late)

    def average(self, name: str, shares: Shares) -> Tensor:
        """The next value of a tensor beside LoRA."""
        previous = self._previous.extra(name)
        if not shares.any_upload_counts:
            return previous
        uploads, late = self._uploads.extra(name), self._uploads.late_extra(name)
        if self._strategy.measures_changes:
            uploads, late = rebased(uploads, previous, late, self._dtype), {}
        return weighted_average(split_tensors(uploads, shares, previous, late, self._dtype))

    def figures(
        self, module: ModuleSpec, updates: Sequence[Update], previous: GlobalFactors, aggregate: Aggregate
    ) -> UpdateGeometry:
        """The geometry of a module's changes for the metrics, from what its aggregation has computed where that is possible."""
        if self._strategy.averages_factors:
            return UpdateGeometry.exact(self.geometry(module))
        columns = sum(update.rank for update in updates)
        if columns > MAX_WHOLE_COLUMNS:
            return UpdateGeometry(*projected_geometry(updates, previous, aggregate.factors, self._dtype, self._fresh))
        all_count = all(update.weight > 0 for update in updates)  # else the stack has fewer terms
        products = aggregate.products[:columns, :columns] if aggregate.products is not None and all_count else None
        whole = geometry_from_products(products, updates, previous, self._dtype, self._fresh)
        return UpdateGeometry.exact(self.geometry(module) if whole is None else whole)

    def _on_device(self, updates: Sequence[Update], previous: GlobalFactors) -> Aggregate:
        device = torch.device(self.work.device)
        bases = {id(u.base): u.base.to(device) for u in updates if u.base is not None}
        moved = [replace(u, A=u.A.to(device), B=u.B.to(device), base=bases.get(id(u.base))) for u in updates]
        bound, options = self._spec.error_bound, self._spec.strategy_options
        aggregate = self._strategy.aggregate(moved, previous.to(device), self._dtype, bound, options)
        products = None if aggregate.products is None else aggregate.products.cpu()
        return replace(aggregate, factors=aggregate.factors.to(torch.device("cpu")), products=products)


def _measured_from(update: InputUpdate, previous: Path) -> InputUpdate:
    """The update without its base, where that is the round's previous global update: a late update in a repeated round."""
    return replace(update, base=None) if update.base == previous else update
