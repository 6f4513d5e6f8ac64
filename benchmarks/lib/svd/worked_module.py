"""A module of a round as a worker does it: read from mapped files, aggregated with its figures, and written."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.lib.svd.module_files import NAME
from benchmarks.lib.svd.svd_baselines import Found
from flexlora_server.adapter_files.global_adapter_torch import GlobalAdapterWriter
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.filters.reweight import Shares
from flexlora_server.aggregation.geometry.projection import cosines
from flexlora_server.aggregation.truncate import Aggregate
from flexlora_server.worker import metrics
from flexlora_server.worker.aggregate_module import ModuleAggregator, ModuleResult, RoundWork
from flexlora_server.worker.metrics import UpdateGeometry
from flexlora_shared.messages.runs import ModuleSpec


class WorkedModule:
    """Opens the files of a round of one module; `once` does all that a worker does for it, any number of times."""

    def __init__(self, work: RoundWork, to: Path) -> None:
        self._work, self._to, self._aggregator = work, to, _Timed(work)
        weights = tuple(update.weight for update in work.inputs)
        self._shares = Shares(weights, (0.0,) * len(weights), ((),) * len(weights))
        self._shares_of_figures: list[float] = []

    def once(self) -> Found:
        """The module of the next global update, which then lies in the file, as a truncated SVD."""
        (module,), figures = self._work.spec.modules, self._aggregator.seconds_of_figures
        figures.clear()
        started = time.thread_time()
        result = self._aggregator.aggregate(module, self._shares)
        with self._to.open("wb") as file:
            writer = GlobalAdapterWriter(file, self._work.spec)
            writer.module(NAME, result.aggregate.factors)
            writer.close()
        with _timed(figures):
            self._measure(module, result)
        self._shares_of_figures.append(sum(figures) / (time.thread_time() - started))
        return _found(result.aggregate)

    def _measure(self, module: ModuleSpec, result: ModuleResult) -> None:
        assert result.geometry is not None, "this run has no filters"
        cosine = metrics.cosine_range(cosines(result.geometry.geometry))
        metrics.module_metrics(self._work.spec, module, result.aggregate, cosine)

    @property
    def share_of_figures(self) -> float:
        """Of a module's time: the median, without the first run where there are more."""
        return statistics.median(self._shares_of_figures[1:] or self._shares_of_figures)


def _found(aggregate: Aggregate) -> Found:
    factors = aggregate.factors
    values = torch.tensor(aggregate.singular_values[: len(factors.A)], dtype=torch.float64)
    return Found(factors.B, values, factors.A, aggregate.route, aggregate.certificate)


class _Timed(ModuleAggregator):
    def __init__(self, work: RoundWork) -> None:
        super().__init__(work)
        self.seconds_of_figures: list[float] = []

    def figures(
        self, module: ModuleSpec, updates: Sequence[Update], previous: GlobalFactors, aggregate: Aggregate
    ) -> UpdateGeometry:
        with _timed(self.seconds_of_figures):
            return super().figures(module, updates, previous, aggregate)


@contextmanager
def _timed(to: list[float]) -> Iterator[None]:
    started = time.thread_time()
    yield
    to.append(time.thread_time() - started)
