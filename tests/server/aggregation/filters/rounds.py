"""Rounds for the filters: changes as plain vectors, and honest rounds with some updates moved elsewhere."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from flexlora_server.aggregation.filters.cosine import Cosine
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.aggregation.geometry.update_geometry import Geometry

RULES: tuple[Rule, ...] = (FixedBound(1.0), RunningBound(1.2, 3), MultiKrum(0.2), GeometricMedian(), Cosine(0.0))


def of_vectors(changes: Sequence[Sequence[float]], previous: Sequence[float] | None = None) -> Geometry:
    """The geometry of changes that are written out."""
    D = torch.tensor(changes, dtype=torch.float64)
    if previous is None:
        return Geometry(D @ D.mT, None, 0.0)
    G = torch.tensor(previous, dtype=torch.float64)
    return Geometry(D @ D.mT, D @ G, float(G.norm()))


def equal(count: int) -> list[float]:
    return [1 / count] * count


def gathered(honest: int, hostile: int, away: Sequence[float], seed: int = 0) -> list[list[float]]:
    """Honest changes near (1, 0, 0, ...), then hostile ones at `away`, each with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.zeros(honest + hostile, len(away), dtype=torch.float64)
    centres[:honest, 0] = 1.0
    centres[honest:] = torch.tensor(away, dtype=torch.float64)
    noise = 0.1 * torch.randn(centres.shape, generator=generator, dtype=torch.float64)
    found: list[list[float]] = (centres + noise).tolist()
    return found


@st.composite
def vector_rounds(draw: st.DrawFn) -> tuple[list[float], list[list[float]], list[float] | None]:
    """Weights, changes, and the last change of the global update or None."""
    count = draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.sampled_from([1e-3, 1.0, 1.0, 1e4]), min_size=count, max_size=count))
    D = torch.randn(count, 4, generator=generator, dtype=torch.float64) * torch.tensor(sizes).double()[:, None]
    shares = draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count))
    previous = torch.randn(4, generator=generator, dtype=torch.float64).tolist() if draw(st.booleans()) else None
    return [share / sum(shares) for share in shares], D.tolist(), previous
