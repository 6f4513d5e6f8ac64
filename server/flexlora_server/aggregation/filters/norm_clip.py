"""Norm clipping: a change longer than a bound is shortened to it (Sun et al. 2019, arXiv 1911.07963).

Running bound: factor * m, with m the lower median of this round's N norms and of the medians of up to h past rounds, each
one vote. A median lies between honest values as long as fewer than half of the votes are false. So boosted updates,
however long, leave the bound at most factor times the longest honest change while they and the past rounds they had
the majority in are fewer than half of N + h. With many participants the present decides; with few, when two liars
may be a majority, the past does. Votes are counted per participant, never by examples: those are only claimed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from flexlora_server.aggregation.filters.rule import Verdict
from flexlora_server.aggregation.geometry.update_geometry import Geometry


@dataclass(frozen=True)
class FixedBound:
    """The same bound in every round: the Frobenius norm of a change over all modules."""

    bound: float
    name = "norm-clip"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        return clipped(weights, geometry.norms, self.bound)


@dataclass(frozen=True)
class RunningBound:
    """`factor` times the median of this round's norms and of the last `history` rounds' medians."""

    factor: float
    history: int
    name = "norm-clip"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        past = past_norms[-self.history :] if self.history else ()
        return clipped(weights, geometry.norms, self.factor * median_low([*geometry.norms, *past]))


def round_norm(norms: Sequence[float]) -> float:
    """The norm that a round adds to `past_norms`: the lower median of its participants' norms, before any filter."""
    return median_low(norms)


def clipped(weights: Sequence[float], norms: Sequence[float], bound: float) -> Verdict:
    """Factor min(1, bound / norm) for each, the weights as they are."""
    factors = [min(1.0, bound / norm) if norm > 0 else 1.0 for norm in norms]
    notes = [
        f"clipped to {factor:.2g} of its change (norm {norm:.3g}, bound {bound:.3g})" if factor < 1 else ""
        for factor, norm in zip(factors, norms, strict=True)
    ]
    return Verdict(tuple(weights), tuple(factors), tuple(notes))
