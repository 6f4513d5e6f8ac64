"""What is reported of an aggregated round: of each module, of the updates beside each other, of all modules together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.adapter_files.round_uploads import InputUpdate
from flexlora_server.aggregation.diagnostics import effective_rank, energy_kept
from flexlora_server.aggregation.filters.norm_clip import round_norm
from flexlora_server.aggregation.filters.reweight import Shares
from flexlora_server.aggregation.geometry.projection import cosines
from flexlora_server.aggregation.geometry.update_geometry import Geometry
from flexlora_server.aggregation.truncate import Aggregate
from flexlora_shared.messages.runs import ModuleSpec, RunSpec
from flexlora_shared.messages.status import (
    AggregationMetrics,
    AggregationSummary,
    CosineRange,
    EnergyKept,
    ModuleMetrics,
    UpdateMetrics,
)

SHOWN_PAIRS = 32  # participants up to which the cosine of every pair is kept


@dataclass(frozen=True)
class Seen:
    """The geometry of some tensors' changes, of which the inner products may be those within leading directions; and the
    squared norms of the whole changes (N,), float64.
    """

    geometry: Geometry
    squared_norms: Tensor

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.geometry + other.geometry, self.squared_norms + other.squared_norms)


def of_module(spec: RunSpec, module: ModuleSpec, done: Aggregate, cosine: CosineRange | None) -> ModuleMetrics:
    """One module's figures."""
    kept = energy_kept(done, sorted(spec.ranks))
    return ModuleMetrics(
        name=module.name,
        singular_values=done.singular_values,
        total_energy=done.total_energy,
        effective_rank=effective_rank(done.singular_values),
        energy_kept=tuple(EnergyKept(rank=rank, share=share) for rank, share in kept),
        pairwise_cosine=cosine,
        route=done.route,
        fell_back=done.fell_back,
        certificate=done.certificate,
    )


def of_updates(inputs: Sequence[InputUpdate], shares: Shares, whole: Seen) -> AggregationMetrics:
    """The updates beside each other, over all modules."""
    found = cosines(whole.geometry)
    n = len(inputs)
    others = torch.where(torch.eye(n, dtype=torch.bool), torch.nan, found)
    means = others.nanmean(dim=1).tolist()
    norms = whole.squared_norms.clamp(min=0).sqrt().tolist()
    updates = tuple(
        UpdateMetrics(client_id=given.client_id, weight=weight, change_norm=norm, cosine=_or_none(mean), notes=notes)
        for given, weight, norm, mean, notes in zip(inputs, shares.upload, norms, means, shares.notes, strict=True)
    )
    pairs = tuple(tuple(map(_or_none, row)) for row in found.tolist()) if n <= SHOWN_PAIRS else ()
    return AggregationMetrics(
        change_norm=round_norm(norms), pairwise_cosine=cosine_range(found), cosines=pairs, updates=updates
    )


def summary(modules: Sequence[ModuleMetrics], updates: AggregationMetrics) -> AggregationSummary:
    """What a list of rounds shows."""
    return AggregationSummary(
        pairwise_cosine=updates.pairwise_cosine,
        change_norm=updates.change_norm,
        filtered=sum(bool(one.notes) for one in updates.updates),
        certificate=max(module.certificate for module in modules),
    )


def cosine_range(found: Tensor) -> CosineRange | None:
    """Of the pairs (i, j), i < j."""
    i, j = torch.triu_indices(len(found), len(found), 1)
    pairs = found[i, j]
    pairs = pairs[~pairs.isnan()]
    if len(pairs) == 0:
        return None
    return CosineRange(least=float(pairs.min()), median=float(pairs.median()), most=float(pairs.max()))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


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
