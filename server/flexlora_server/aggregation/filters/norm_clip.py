"""Norm clipping: a change longer than a bound is shortened to it (Sun et al. 2019, arXiv 1911.07963).

Running bound: factor * m, with m the lower median of this round's N norms and of the medians of up to h past rounds, each
one vote. A median lies between honest values as long as fewer than half of the votes are false. So boosted updates,
however long, leave the bound at most factor times the longest honest change while they and the past rounds they had
the majority in are fewer than half of N + h. With many participants the present decides; with few, when two liars
may be a majority, the past does. Votes are counted per participant, never by examples: those are only claimed.

By weight: what a change does is its weight p times its length. So among N >= 4 participants its bound is c m, with
c = min(factor, h (1 - p) / (p sqrt(3))). The N - 1 others together bring (1 - p) h m, where their changes are m long and have
cosines of r with each other: h = sqrt((1 + (N - 2) r) / (N - 1)), here for r = 0.2. A change c m long at a right angle to theirs
then has a cosine of at most 1/2 with the sum. At equal weights c is 1.18 of 4, 1.46 of 5 and, of 7 or more, above 2. Of three
or fewer nobody can tell who is wrong, and the factor alone bounds them. Updates are looked at one by one: a participant whose
late update counts beside its own has two, each bounded by its part of the weight, and both together may be twice as long.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from flexlora_server.aggregation.filters.rule import Verdict
from flexlora_server.aggregation.geometry.update_geometry import Geometry

AGREEMENT = 0.2  # r: least cosine of two honest changes that the bound by weight counts on
LEAST_WEIGHED = 4


@dataclass(frozen=True)
class FixedBound:
    """The same bound in every round: the Frobenius norm of a change over all modules."""

    bound: float
    name = "norm-clip"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        return clipped(weights, geometry.norms, self.bound)


@dataclass(frozen=True)
class RunningBound:
    """`factor` times the median of this round's norms and of the last `history` rounds' medians; less where `by_weight`."""

    factor: float
    history: int
    by_weight: bool = False
    name = "norm-clip"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        past = past_norms[-self.history :] if self.history else ()
        median = median_low([*geometry.norms, *past])
        if not self.by_weight or len(weights) < LEAST_WEIGHED:
            return clipped(weights, geometry.norms, self.factor * median)
        bounds = [min(self.factor, factor_at(weight, len(weights))) * median for weight in weights]
        return clipped(weights, geometry.norms, bounds)


def factor_at(weight: float, participants: int) -> float:
    """How many medians long a change of this weight may be, so that the others outweigh it."""
    others = participants - 1
    h = math.sqrt((1 + (others - 1) * AGREEMENT) / others)
    return h * (1 - weight) / (weight * math.sqrt(3))


def round_norm(norms: Sequence[float]) -> float:
    """The norm that a round adds to `past_norms`: the lower median of its participants' norms, before any filter."""
    return median_low(norms)


def clipped(weights: Sequence[float], norms: Sequence[float], bound: float | Sequence[float]) -> Verdict:
    """Factor min(1, bound / norm) for each, the weights as they are; one bound for all, or one for each."""
    bounds = [bound] * len(norms) if isinstance(bound, float) else bound
    factors = [min(1.0, bound / norm) if norm > 0 else 1.0 for norm, bound in zip(norms, bounds, strict=True)]
    notes = [
        f"clipped to {factor:.2g} of its change (norm {norm:.3g}, bound {bound:.3g})" if factor < 1 else ""
        for factor, norm, bound in zip(factors, norms, bounds, strict=True)
    ]
    return Verdict(tuple(weights), tuple(factors), tuple(notes))
