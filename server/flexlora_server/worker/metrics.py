"""The metrics of an aggregated round: of each module, of the updates compared with each other, and of all modules together."""

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
from flexlora_shared.ranks import capped

MAX_PAIRWISE_PARTICIPANTS = 32  # participants up to which the cosine of every pair is kept


@dataclass(frozen=True)
class UpdateGeometry:
    """How the updates of a round changed some tensors.

    geometry: inner products of the changes, or of their projections on the leading directions of the result.
    squared_norms: of the whole changes (N,), float64.
    """

    geometry: Geometry
    squared_norms: Tensor

    @classmethod
    def exact(cls, geometry: Geometry) -> "UpdateGeometry":
        """Of a geometry that was computed exactly: its diagonal holds the squared norms."""
        return cls(geometry, geometry.inner.diagonal().clone())

    def __add__(self, other: "UpdateGeometry") -> "UpdateGeometry":
        return UpdateGeometry(self.geometry + other.geometry, self.squared_norms + other.squared_norms)


def module_metrics(
    spec: RunSpec, module: ModuleSpec, aggregate: Aggregate, cosine: CosineRange | None
) -> ModuleMetrics:
    """The metrics of one module, without the time and the bytes it took."""
    ranks = sorted(spec.ranks)
    kept = energy_kept(aggregate, [capped(module, rank) for rank in ranks])
    return ModuleMetrics(
        name=module.name,
        singular_values=aggregate.singular_values,
        total_energy=aggregate.total_energy,
        effective_rank=effective_rank(aggregate.singular_values),
        energy_kept=tuple(EnergyKept(rank=rank, share=share) for rank, (_, share) in zip(ranks, kept, strict=True)),
        pairwise_cosine=cosine,
        route=aggregate.route,
        fell_back=aggregate.fell_back,
        certificate=aggregate.certificate,
    )


def update_metrics(inputs: Sequence[InputUpdate], shares: Shares, total: UpdateGeometry) -> AggregationMetrics:
    """The metrics of the updates over all modules, compared with each other; `total` is the sum over the modules."""
    pairwise = cosines(total.geometry)
    n = len(inputs)
    others = torch.where(torch.eye(n, dtype=torch.bool), torch.nan, pairwise)
    means = others.nanmean(dim=1).tolist()
    norms = total.squared_norms.clamp(min=0).sqrt().tolist()
    updates = tuple(
        UpdateMetrics(
            client_id=update.client_id,
            weight=weight,
            change_norm=norm,
            cosine=_or_none(mean),
            notes=(*_capped(update), *notes),
            uncapped=update.uncapped,
        )
        for update, weight, norm, mean, notes in zip(inputs, shares.upload, norms, means, shares.notes, strict=True)
    )
    pairs = tuple(tuple(map(_or_none, row)) for row in pairwise.tolist()) if n <= MAX_PAIRWISE_PARTICIPANTS else ()
    return AggregationMetrics(
        change_norm=round_norm(norms), pairwise_cosine=cosine_range(pairwise), cosines=pairs, updates=updates
    )


def _capped(update: InputUpdate) -> tuple[str, ...]:
    """The sentence about an update that the run's cap has bound."""
    if update.uncapped is None:
        return ()
    return (f"weighs {update.weight:.3g} by the run's cap, not {update.uncapped:.3g} as its examples say",)


def summarize(modules: Sequence[ModuleMetrics], updates: AggregationMetrics, late: int) -> AggregationSummary:
    """The summary that lists of rounds show."""
    return AggregationSummary(
        pairwise_cosine=updates.pairwise_cosine,
        change_norm=updates.change_norm,
        filtered=sum(len(update.notes) > (update.uncapped is not None) for update in updates.updates),
        capped=sum(update.uncapped is not None for update in updates.updates),
        late=late,
        certificate=max(module.certificate for module in modules),
    )


def cosine_range(cosines: Tensor) -> CosineRange | None:
    """Least, median and largest cosine of the pairs (i, j), i < j, of an (N, N) matrix; None where all are NaN."""
    i, j = torch.triu_indices(len(cosines), len(cosines), 1)
    pairs = cosines[i, j]
    pairs = pairs[~pairs.isnan()]
    if len(pairs) == 0:
        return None
    return CosineRange(least=float(pairs.min()), median=float(pairs.median()), most=float(pairs.max()))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def energy_over_modules(modules: Sequence[ModuleMetrics]) -> tuple[EnergyKept, ...]:
    """The share of the energy kept at each rank over all modules together; 1 where there is no energy."""
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
