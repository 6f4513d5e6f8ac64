"""Aggregates a round: reads the accepted uploads module by module from their files, writes the new global update.

One LAPACK thread a module, modules side by side (two threads in one factorisation were 20 times slower than one on a busy
two-core machine). Never more than `threads` modules are in memory, and never a whole upload.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from safetensors import safe_open
from torch import Tensor

from flexlora_server.adapters.inspection import upload_scaling
from flexlora_server.adapters.slices import served_dtype, served_scaling
from flexlora_server.adapters.stored import StoredAdapter, StoredWriter
from flexlora_server.aggregation.diagnostics import effective_rank, energy_kept
from flexlora_server.aggregation.extra import initial_extra, weighted_average
from flexlora_server.aggregation.factors import Update, initial_factors
from flexlora_server.aggregation.strategy import Aggregate, strategy
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.runs import ExtraTensor, ModuleSpec, RunSpec
from flexlora_shared.messages.status import EnergyKept, ModuleMetrics
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import by_pattern

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Input:
    """An accepted upload: its file, what was announced of it, and its weight in the round."""

    path: Path
    told: UploadCreate
    weight: float


def weighted(uploads: Sequence[tuple[Path, UploadCreate]]) -> list[Input]:
    """Inputs weighted by their training examples, `p_i = n_i / sum n`."""
    total = sum(told.examples for _, told in uploads)
    return [Input(path, told, told.examples / total) for path, told in uploads]


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
    spec: RunSpec, inputs: Sequence[Input], previous: Path, file: BinaryIO, threads: int, alive: Callable[[], None]
) -> tuple[ModuleMetrics, ...]:
    """The next global update, from the accepted inputs in their given order and the previous one.

    `alive` is called between modules: it renews the lease, and raises to stop the work.

    Raises:
        AggregationError: the inputs cannot be aggregated.
    """
    writer, before = StoredWriter(file, spec), StoredAdapter(previous)
    metrics = []
    for module, aggregate in _side_by_side(lambda m: _aggregate(spec, m, inputs, before), spec.modules, threads):
        alive()
        writer.module(module.name, aggregate.factors)
        metrics.append(_metrics(spec, module, aggregate))
    for extra in spec.extra:
        alive()
        writer.extra(extra.name, _average(extra, inputs))
    writer.close()
    return tuple(metrics)


def _aggregate(spec: RunSpec, module: ModuleSpec, inputs: Sequence[Input], before: StoredAdapter) -> Aggregate:
    updates = [_update(spec, module.name, given) for given in inputs]
    return strategy(spec.strategy).aggregate(updates, before.factors(module.name), served_dtype(spec))


def _update(spec: RunSpec, module: str, given: Input) -> Update:
    with safe_open(given.path, framework="pt") as file:
        return Update(
            A=file.get_tensor(key_A(module)),
            B=file.get_tensor(key_B(module)),
            scaling=upload_scaling(given.told, module),
            weight=given.weight,
            served_scaling=served_scaling(spec, by_pattern(module, given.told.rank, given.told.rank_pattern)),
        )


def _average(extra: ExtraTensor, inputs: Sequence[Input]) -> Tensor:
    return weighted_average((_extra(extra.name, given.path), given.weight) for given in inputs)


def _extra(name: str, upload: Path) -> Tensor:
    with safe_open(upload, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key_extra(name))
    return tensor


def _metrics(spec: RunSpec, module: ModuleSpec, aggregate: Aggregate) -> ModuleMetrics:
    kept = energy_kept(aggregate, sorted(spec.ranks))
    return ModuleMetrics(
        name=module.name,
        singular_values=aggregate.singular_values,
        total_energy=aggregate.total_energy,
        effective_rank=effective_rank(aggregate.singular_values),
        energy_kept=tuple(EnergyKept(rank=rank, share=share) for rank, share in kept),
    )


def energy_over_modules(modules: Sequence[ModuleMetrics]) -> tuple[EnergyKept, ...]:
    """The energy kept at each rank over all modules together; all of it where there is none to lose."""
    total = sum(module.total_energy for module in modules)
    if total == 0:
        return modules[0].energy_kept if modules else ()
    return tuple(
        EnergyKept(
            rank=kept.rank,
            share=sum(module.energy_kept[index].share * module.total_energy for module in modules) / total,
        )
        for index, kept in enumerate(modules[0].energy_kept)
    )


def _side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """`work` of each item in order, `threads` at a time; no further item begins before its turn to be yielded is near."""
    with ThreadPoolExecutor(threads) as pool:
        running: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in items:
                running.append((item, pool.submit(work, item)))
                if len(running) >= threads:
                    first, future = running.popleft()
                    yield first, future.result()
            while running:
                first, future = running.popleft()
                yield first, future.result()
        finally:
            for _, future in running:
                future.cancel()
