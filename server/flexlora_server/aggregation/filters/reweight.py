"""What counts of each update after a round's filters: the filters in their order, and the shares that come of it.

A change shortened by c is S + c D = c W + (1 - c) S: the upload at the weight p c and what was served at p (1 - c). That
is right for every strategy that is linear in the updates, whether it averages products or factors, and none knows of
filters. (hetlora is not linear: it weighs an update by its norm as well, which takes back what clipping took.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flexlora_server.aggregation.check import check_weights
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.aggregation.geometry.update_geometry import Geometry

NOBODY = "no update was left by this round's filters: the global update stays as it was"


@dataclass(frozen=True)
class Shares:
    """For each participant of a round, in order: what its upload counts, and what it was served counts in its place.

    All upload and served weights together sum to 1.
    notes: what the filters did to it, a sentence each; () for a participant left alone.
    """

    upload: tuple[float, ...]
    served: tuple[float, ...]
    notes: tuple[tuple[str, ...], ...]

    @property
    def moves(self) -> bool:
        """Whether any upload counts; otherwise the global update is to stay exactly as it was."""
        return any(self.upload)


def reweighted(
    weights: Sequence[float], geometry: Geometry, filters: Sequence[Rule], past_norms: Sequence[float]
) -> Shares:
    """Apply the filters in order: each sees the geometry after earlier clips, and only whom earlier ones left.

    weights: p_i, summing to 1. past_norms: the past rounds' `norm_clip.round_norm`, newest last.

    Raises AggregationError for weights that do not sum to 1.
    """
    check_weights(weights)
    left, factors, notes = list(weights), [1.0] * len(weights), [list[str]() for _ in weights]
    for rule in filters:
        present = [i for i, weight in enumerate(left) if weight > 0]
        if not present:
            break
        verdict = rule.apply(
            [left[i] for i in present], geometry.of(present, [factors[i] for i in present]), past_norms
        )
        for i, weight, factor, note in zip(present, verdict.weights, verdict.factors, verdict.notes, strict=True):
            left[i], factors[i] = weight, factors[i] * factor
            notes[i] += [note] if note else []
    if not any(left):
        left, factors, notes = list(weights), [0.0] * len(weights), [[*told, NOBODY] for told in notes]
    upload = tuple(weight * factor for weight, factor in zip(left, factors, strict=True))
    served = tuple(weight - counted for weight, counted in zip(left, upload, strict=True))
    return Shares(upload, served, tuple(tuple(told) for told in notes))
