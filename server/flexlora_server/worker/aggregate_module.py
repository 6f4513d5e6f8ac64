"""One aggregation with its files open: what each tensor of the round contributes to it, apart from all others.

A pool calls this for one module at a time, in threads of one process or in processes on other machines.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import StoredAdapter, served_dtype
from flexlora_server.adapter_files.round_uploads import InputUpdate, Uploads
from flexlora_server.aggregation.extra import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.filters.reweight import Shares
from flexlora_server.aggregation.filters.split import rebased, split, split_tensors
from flexlora_server.aggregation.geometry.projection import projected_geometry, squared_norms
from flexlora_server.aggregation.geometry.update_geometry import (
    Geometry,
    factor_geometry,
    module_geometry,
    tensor_geometry,
)
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.truncate import Aggregate, as_they_are
from flexlora_server.worker.metrics import Seen
from flexlora_shared.messages.runs import ModuleSpec, RunSpec

# Columns of all updates together up to which their inner products are computed exactly for the figures alone (a filter
# always gets the exact ones): beyond, in the leading directions of the result, which costs less than the result did.
EXACT_FIGURES = 1024


@dataclass(frozen=True)
class Work:
    """One aggregation: the frozen inputs of a round, and how to go about it.

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

    def located(self, find: Callable[[Path], Path]) -> "Work":
        """The same work on files where `find` says that they are."""
        inputs = [
            replace(update, path=find(update.path), base=None if update.base is None else find(update.base))
            for update in self.inputs
        ]
        before = None if self.before is None else find(self.before)
        return replace(self, inputs=inputs, previous=find(self.previous), before=before)


@dataclass(frozen=True)
class Done:
    """One module's result."""

    aggregate: Aggregate
    seen: Seen | None  # None where a pass before has seen it
    seconds: float
    bytes_read: int


class Opened:
    """The files of one aggregation, each opened once; every method is a function of them and its arguments."""

    def __init__(self, work: Work) -> None:
        self.work, self._spec = work, work.spec
        self._previous = StoredAdapter(work.previous)
        self._before = None if work.before is None else StoredAdapter(work.before)
        self._strategy, self._dtype = strategy(work.spec.strategy), served_dtype(work.spec)
        self._fresh = self._strategy.agents_train == "fresh"
        self._uploads = Uploads(work.spec, [_of_round(given, work.previous) for given in work.inputs])

    def aggregate(self, module: ModuleSpec, shares: Shares) -> Done:
        """A module of the next global update, and the geometry of its changes where filters have not needed it before."""
        started = time.perf_counter()
        updates, previous = self._uploads.updates(module.name), self._previous.factors(module.name)
        if shares.moves:
            aggregate = self._on_device(split(updates, shares, previous, self._dtype, self._fresh), previous)
        else:
            aggregate = as_they_are(previous)
        read = sum(update.A.nbytes + update.B.nbytes for update in updates)
        seen = None if self._spec.robust else self._seen(module, updates, previous, aggregate)
        return Done(aggregate, seen, time.perf_counter() - started, read)

    def geometry(self, module: ModuleSpec) -> Geometry:
        """Of a module's changes; with the last change of the global update where filters ask for it."""
        before = None if self._before is None or not self._spec.robust else self._before.factors(module.name)
        updates, previous = self._uploads.updates(module.name), self._previous.factors(module.name)
        if self._strategy.averages_factors:
            return factor_geometry(updates, previous, before, self._dtype)
        return module_geometry(updates, previous, before, self._dtype, self._fresh)

    def extra_geometry(self, name: str) -> Geometry:
        """The same of a tensor beside LoRA."""
        before = None if self._before is None or not self._spec.robust else self._before.extra(name)
        uploads, late = list(self._uploads.extra(name)), self._uploads.late_extra(name)
        return tensor_geometry(uploads, self._previous.extra(name), before, self._dtype, late)

    def average(self, name: str, shares: Shares) -> Tensor:
        """A tensor beside LoRA of the next global update."""
        previous = self._previous.extra(name)
        if not shares.moves:
            return previous
        uploads, late = self._uploads.extra(name), self._uploads.late_extra(name)
        if self._strategy.measures_changes:
            uploads, late = rebased(uploads, previous, late, self._dtype), {}
        return weighted_average(split_tensors(uploads, shares, previous, late, self._dtype))

    def _seen(
        self, module: ModuleSpec, updates: Sequence[Update], previous: GlobalFactors, aggregate: Aggregate
    ) -> Seen:
        if self._strategy.averages_factors or sum(update.rank for update in updates) <= EXACT_FIGURES:
            return exactly(self.geometry(module))
        geometry = projected_geometry(updates, previous, aggregate.factors, self._dtype, self._fresh)
        return Seen(geometry, squared_norms(updates, previous, self._dtype, self._fresh))

    def _on_device(self, updates: Sequence[Update], previous: GlobalFactors) -> Aggregate:
        device = torch.device(self.work.device)
        there = {id(u.base): u.base.to(device) for u in updates if u.base is not None}
        moved = [replace(u, A=u.A.to(device), B=u.B.to(device), base=there.get(id(u.base))) for u in updates]
        done = self._strategy.aggregate(moved, previous.to(device), self._dtype, self._spec.error_bound)
        return replace(done, factors=done.factors.to(torch.device("cpu")))


def _of_round(given: InputUpdate, previous: Path) -> InputUpdate:
    """One that was served from the previous update after all is measured as all others are: a round that is tried again."""
    return replace(given, base=None) if given.base == previous else given


def exactly(geometry: Geometry) -> Seen:
    """What is reported of a geometry that was computed exactly."""
    return Seen(geometry, geometry.inner.diagonal().clone())
