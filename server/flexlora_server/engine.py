"""Aggregates a round: reads the accepted uploads module by module from their files, writes the new global update.

One LAPACK thread a module, modules side by side. No more than `threads` modules and one that waits to be written are in memory,
never a whole upload. Results are written in the order of the modules, so the bytes do not depend on the number of threads.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from flexlora_server import figures
from flexlora_server.adapters.stored import StoredAdapter, StoredWriter, served_dtype
from flexlora_server.adapters.uploads import Input, Uploads
from flexlora_server.aggregation.extra import initial_extra, weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors
from flexlora_server.aggregation.geometry import Geometry, factor_geometry, module_geometry, tensor_geometry
from flexlora_server.aggregation.projection import cosines, projected_geometry, squared_norms
from flexlora_server.aggregation.robust.defined import rules
from flexlora_server.aggregation.robust.reweight import Shares, reweighted
from flexlora_server.aggregation.robust.split import split, split_tensors
from flexlora_server.aggregation.strategy import Aggregate, strategy
from flexlora_server.aggregation.truncate import as_they_are
from flexlora_server.figures import Seen
from flexlora_server.side_by_side import side_by_side
from flexlora_shared.messages.runs import ModuleSpec, RunSpec
from flexlora_shared.messages.status import AggregationMetrics, CosineRange, ModuleMetrics

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
    inputs: Sequence[Input]
    previous: Path
    before: Path | None = None
    past_norms: Sequence[float] = ()
    threads: int = 1
    device: str = "cpu"


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
    work: Work, file: BinaryIO, alive: Callable[[], None]
) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
    """The next global update, from the accepted inputs in their given order and the previous one.

    `alive` is called between modules: it renews the lease, and raises to stop the work.

    Raises:
        AggregationError: the inputs cannot be aggregated.
    """
    return _Round(work, alive).write(file)


@dataclass(frozen=True)
class _Done:
    """One module's result."""

    aggregate: Aggregate
    seen: Seen | None  # None where a pass before has seen it
    seconds: float
    bytes_read: int


class _Round:
    """One aggregation under way."""

    def __init__(self, work: Work, alive: Callable[[], None]) -> None:
        self._work, self._alive, self._spec = work, alive, work.spec
        self._uploads = Uploads(work.spec, work.inputs)
        self._previous = StoredAdapter(work.previous)
        self._before = None if work.before is None else StoredAdapter(work.before)
        self._strategy, self._dtype = strategy(work.spec.strategy), served_dtype(work.spec)
        self._fresh = self._strategy.agents_train == "fresh"
        self._ranges: dict[str, CosineRange | None] = {}
        self._whole: Seen | None = None

    def write(self, file: BinaryIO) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
        shares = self._filtered() if self._spec.robust else self._as_given()
        writer, metrics = StoredWriter(file, self._spec), []
        for module, done in side_by_side(lambda m: self._aggregate(m, shares), self._spec.modules, self._work.threads):
            self._alive()
            writer.module(module.name, done.aggregate.factors)
            if done.seen is not None:
                self._see(module.name, done.seen)
            found = figures.of_module(self._spec, module, done.aggregate, self._ranges[module.name])
            metrics.append(found.model_copy(update={"seconds": done.seconds, "bytes_read": done.bytes_read}))
        for extra in self._spec.extra:
            self._alive()
            if not self._spec.robust:
                self._see(extra.name, _exactly(self._extra_geometry(extra.name)))
            writer.extra(extra.name, self._average(extra.name, shares))
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
        for module, geometry in side_by_side(self._geometry, self._spec.modules, self._work.threads):
            self._alive()
            self._see(module.name, _exactly(geometry))
        for extra in self._spec.extra:
            self._alive()
            self._see(extra.name, _exactly(self._extra_geometry(extra.name)))
        assert self._whole is not None, "a run has modules"
        weights = [given.weight for given in self._work.inputs]
        return reweighted(weights, self._whole.geometry, rules(self._spec.robust), self._work.past_norms)

    def _geometry(self, module: ModuleSpec) -> Geometry:
        """With the last change of the global update where filters ask for it."""
        before = None if self._before is None or not self._spec.robust else self._before.factors(module.name)
        updates, previous = self._uploads.updates(module.name), self._previous.factors(module.name)
        if self._strategy.averages_factors:
            return factor_geometry(updates, previous, before, self._dtype)
        return module_geometry(updates, previous, before, self._dtype, self._fresh)

    def _extra_geometry(self, name: str) -> Geometry:
        before = None if self._before is None or not self._spec.robust else self._before.extra(name)
        return tensor_geometry(list(self._uploads.extra(name)), self._previous.extra(name), before, self._dtype)

    def _aggregate(self, module: ModuleSpec, shares: Shares) -> "_Done":
        started = time.perf_counter()
        updates, previous = self._uploads.updates(module.name), self._previous.factors(module.name)
        if shares.moves:
            aggregate = self._on_device(split(updates, shares, previous, self._dtype, self._fresh), previous)
        else:
            aggregate = as_they_are(previous)
        read = sum(update.A.nbytes + update.B.nbytes for update in updates)
        seen = None if self._spec.robust else self._seen(module, updates, previous, aggregate)
        return _Done(aggregate, seen, time.perf_counter() - started, read)

    def _seen(
        self, module: ModuleSpec, updates: Sequence[Update], previous: GlobalFactors, aggregate: Aggregate
    ) -> Seen:
        if self._strategy.averages_factors or sum(update.rank for update in updates) <= EXACT_FIGURES:
            return _exactly(self._geometry(module))
        geometry = projected_geometry(updates, previous, aggregate.factors, self._dtype, self._fresh)
        return Seen(geometry, squared_norms(updates, previous, self._dtype, self._fresh))

    def _average(self, name: str, shares: Shares) -> Tensor:
        previous = self._previous.extra(name)
        if not shares.moves:
            return previous
        return weighted_average(split_tensors(self._uploads.extra(name), shares, previous, self._dtype))

    def _on_device(self, updates: Sequence[Update], previous: GlobalFactors) -> Aggregate:
        device = torch.device(self._work.device)
        there = [replace(u, A=u.A.to(device), B=u.B.to(device)) for u in updates]
        before = GlobalFactors(previous.B.to(device), previous.A.to(device))
        done = self._strategy.aggregate(there, before, self._dtype, self._spec.error_bound)
        return replace(done, factors=GlobalFactors(done.factors.B.cpu(), done.factors.A.cpu()))


def _exactly(geometry: Geometry) -> Seen:
    return Seen(geometry, geometry.inner.diagonal().clone())
