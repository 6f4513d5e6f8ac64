"""The interface of a robust filter, and its verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flexlora_server.aggregation.geometry.update_geometry import Geometry


@dataclass(frozen=True)
class Verdict:
    """One filter's judgement of the participants it was shown, in their order.

    weights: of each update, summing to 1; all 0 where nobody is left.
    factors: in [0, 1], what is left of each change.
    notes: a sentence for each update that was changed or dropped, "" for the others.
    """

    weights: tuple[float, ...]
    factors: tuple[float, ...]
    notes: tuple[str, ...]


class Rule(Protocol):
    """A robust filter: judges updates by their geometry alone; the same input, the same verdict."""

    @property
    def name(self) -> str:
        """The `kind` it has in a run's definition."""

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        """Judge at least one participant. weights: positive, summing to 1. past_norms: see `norm_clip.round_norm`."""


def unclipped(weights: Sequence[float], notes: Sequence[str]) -> Verdict:
    """These weights, with no change shortened."""
    return Verdict(tuple(weights), (1.0,) * len(weights), tuple(notes))


def keeping(weights: Sequence[float], keep: Sequence[bool], notes: Sequence[str]) -> Verdict:
    """Weight 0 for updates not kept; the weights of the others sum to 1 again."""
    if all(keep):
        return unclipped(weights, notes)
    total = math.fsum(weight for weight, kept in zip(weights, keep, strict=True) if kept)
    return unclipped([weight / total if kept else 0.0 for weight, kept in zip(weights, keep, strict=True)], notes)
