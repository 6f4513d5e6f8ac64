"""The cosine filter: leave out a change that points away from the last change of the global update.

The same comparison as FLTrust's (Cao et al. 2021, NDSS, arXiv 2012.13995), with the last published change in the place of
an update trained on data the server trusts, because a coordinator has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flexlora_server.aggregation.filters.rule import Verdict, keeping, unclipped
from flexlora_server.aggregation.geometry.update_geometry import Geometry


@dataclass(frozen=True)
class Cosine:
    """Keeps updates whose cosine is at least `minimum`; where there is no direction to compare with, all."""

    minimum: float
    name = "cosine"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        if geometry.with_previous is None:
            return unclipped(weights, [""] * len(weights))
        cosines = [
            dot / (norm * geometry.previous_norm) if norm * geometry.previous_norm > 0 else None
            for dot, norm in zip(geometry.with_previous.tolist(), geometry.norms, strict=True)
        ]
        keep = [cosine is None or cosine >= self.minimum for cosine in cosines]
        notes = [
            "" if kept else f"dropped by cosine: {cosine:.2g} to the last round's change, asked is {self.minimum:.2g}"
            for cosine, kept in zip(cosines, keep, strict=True)
        ]
        return keeping(weights, keep, notes)
