"""Multi-Krum: keep the updates closest to their neighbours (Blanchard et al. 2017, NeurIPS, arXiv 1703.02757).

With f byzantine among N, an update's score is the sum of its N - f - 2 smallest squared distances to the others; the N - f
with the smallest scores are kept. Needs N >= 2f + 3. In a smaller round f is lowered to the largest that N
allows, (N - 3) // 2, and everybody's note says so: with fewer than 5 updates nobody can be left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.aggregation.filters.rule import Verdict, keeping
from flexlora_server.aggregation.geometry.update_geometry import Geometry

_ROUNDING = 1e-9  # 0.15 * 20 participants are 3, not 4


@dataclass(frozen=True)
class MultiKrum:
    """f is `byzantine_share` of the round's participants, rounded up."""

    byzantine_share: float
    name = "multi-krum"

    def apply(self, weights: Sequence[float], geometry: Geometry, past_norms: Sequence[float]) -> Verdict:
        count = len(weights)
        assumed = math.ceil(self.byzantine_share * count - _ROUNDING)
        f = max(0, min(assumed, (count - 3) // 2))
        krum_scores = scores(squared_distances(geometry.inner), f)
        order = sorted(range(count), key=krum_scores.__getitem__)  # of equal scores the earlier participant is kept
        kept = set(order[: count - f])
        largest = krum_scores[order[count - f - 1]]
        lowered = f"multi-krum could assume {f} byzantine of {count} updates, not {assumed}" if f < assumed else ""
        notes = [
            lowered
            if i in kept
            else f"dropped by multi-krum: score {krum_scores[i]:.2g}, the largest kept is {largest:.2g}"
            for i in range(count)
        ]
        return keeping(weights, [i in kept for i in range(count)], notes)


def squared_distances(inner: Tensor) -> Tensor:
    """|D_i - D_j|^2 from the inner products, (N, N)."""
    own = inner.diagonal()
    return (own[:, None] + own[None, :] - 2 * inner).clamp(min=0)


def scores(distances: Tensor, f: int) -> list[float]:
    """For each the sum of its N - f - 2 smallest squared distances to others (all others where N is less than 3)."""
    count = len(distances)
    others = distances.clone().fill_diagonal_(torch.inf).sort(dim=1).values
    sums: list[float] = others[:, : max(count - f - 2, min(1, count - 1))].sum(dim=1).tolist()
    return sums
