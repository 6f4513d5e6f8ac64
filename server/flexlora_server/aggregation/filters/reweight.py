"""Applies a round's filters in order, and computes the share with which each update counts.

A change shortened by c is S + c D = c W + (1 - c) S: the upload at the weight p c and what was served at p (1 - c). That
is correct for every strategy that is linear in the updates, whether it averages products or factors, and strategies need not
know of filters. (hetlora is not linear: it weighs an update by its norm as well, which takes back what clipping took.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flexlora_server.aggregation.check_updates import check_weights
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.aggregation.geometry.update_geometry import Geometry

NOTHING_LEFT = "no update was left by this round's filters: the global update stays as it was"


@dataclass(frozen=True)
class Shares:
    """For each participant of a round, in order: the weight of its upload, and that of its served slice in its place.

    All upload and served weights together sum to 1.
    notes: what the filters did to it, a sentence each; () where they did nothing.
    """

    upload: tuple[float, ...]
    served: tuple[float, ...]
    notes: tuple[tuple[str, ...], ...]

    @property
    def any_upload_counts(self) -> bool:
        """Whether any upload counts; otherwise the global update is to stay exactly as it was."""
        return any(self.upload)


def apply_filters(
    weights: Sequence[float], geometry: Geometry, filters: Sequence[Rule], past_norms: Sequence[float]
) -> Shares:
    """Apply the filters in order: each sees the geometry after earlier clips, and only the updates that earlier ones kept.

    weights: p_i, summing to 1. past_norms: the past rounds' `norm_clip.round_norm`, newest last.

    Raises AggregationError for weights that do not sum to 1.
    """
    check_weights(weights)
    kept, factors, notes = list(weights), [1.0] * len(weights), [list[str]() for _ in weights]
    for rule in filters:
        present = [i for i, weight in enumerate(kept) if weight > 0]
        if not present:
            break
        verdict = rule.apply(
            [kept[i] for i in present], geometry.of(present, [factors[i] for i in present]), past_norms
        )
        for i, weight, factor, note in zip(present, verdict.weights, verdict.factors, verdict.notes, strict=True):
            kept[i], factors[i] = weight, factors[i] * factor
            notes[i] += [note] if note else []
    if not any(kept):
        kept, factors, notes = list(weights), [0.0] * len(weights), [[*sentences, NOTHING_LEFT] for sentences in notes]
    upload = tuple(weight * factor for weight, factor in zip(kept, factors, strict=True))
    served = tuple(weight - counted for weight, counted in zip(kept, upload, strict=True))
    return Shares(upload, served, tuple(tuple(sentences) for sentences in notes))
