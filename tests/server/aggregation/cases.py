"""Rounds to aggregate: seeded participants, Hypothesis strategies for odd ones, and idle participants."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors, slice_factors
from tests.server.aggregation import oracle

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Round:
    """What a strategy is called with."""

    updates: tuple[Update, ...]
    previous: GlobalFactors

    @property
    def uploads(self) -> list[oracle.Upload]:
        return [to_oracle(update) for update in self.updates]


def to_oracle(update: Update) -> oracle.Upload:
    A, B = oracle.to_numpy(update.A), oracle.to_numpy(update.B)
    return oracle.Upload(A, B, update.scaling, update.weight)


def random_update(
    generator: torch.Generator, d: int, k: int, rank: int, weight: float, scaling: float = 2.0, size: float = 1.0
) -> Update:
    A = torch.randn(rank, k, generator=generator) / k**0.5
    B = size * torch.randn(d, rank, generator=generator) / d**0.5
    return Update(A=A, B=B, scaling=scaling, weight=weight, served_scaling=scaling)


def random_round(ranks: Sequence[int], d: int = 24, k: int = 40, seed: int = 0) -> Round:
    """One participant per rank, unequal weights and scalings, r_max the largest rank."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.arange(1, len(ranks) + 1, dtype=torch.float64)
    weights = (shares / shares.sum()).tolist()
    updates = tuple(
        random_update(generator, d, k, rank, weight, scaling=0.5 + index)
        for index, (rank, weight) in enumerate(zip(ranks, weights, strict=True))
    )
    return Round(updates, initial_factors(d, k, max(ranks), 7, "m", torch.float32))


def idle_update(
    factors: GlobalFactors, rank: int, served_scaling: float, weight: float, dtype: torch.dtype, rescale: float = 1.0
) -> Update:
    """A participant that sends back what it was served, its scaling multiplied and its B divided by `rescale`."""
    A, B = slice_factors(factors, rank, served_scaling, dtype)
    return Update(A, B / rescale, served_scaling * rescale, weight, served_scaling)


def product(factors: GlobalFactors, rank: int | None = None) -> oracle.Matrix:
    return oracle.to_numpy(factors.B)[:, :rank] @ oracle.to_numpy(factors.A)[:rank]


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """Any shape, rank, scaling, weight, size and upload dtype; rank-deficient, zero and duplicated ones among them."""
    d, k = draw(st.integers(2, 20)), draw(st.integers(2, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ranks = draw(st.lists(st.integers(1, 10), min_size=1, max_size=5))
    shares = draw(st.lists(st.integers(1, 1000), min_size=len(ranks), max_size=len(ranks)))
    magnitudes = draw(st.lists(st.sampled_from([1.0, 1e-8, 1e-3, 1e4, 1e8]), min_size=1, max_size=2))
    updates = []
    for rank, share in zip(ranks, shares, strict=True):
        magnitude = draw(st.sampled_from(magnitudes))
        scaling = draw(st.sampled_from([1.0, 0.125, 16 / rank, 8 / rank**0.5, 32.0]))
        made = random_update(generator, d, k, rank, share / sum(shares), scaling, magnitude)
        updates.append(_varied(draw, made, magnitude))
    if draw(st.booleans()):
        first = updates[0]
        half = Update(first.A, first.B, first.scaling, first.weight / 2, first.served_scaling)
        updates = [half, half, *updates[1:]]
    return Round(tuple(updates), initial_factors(d, k, max(ranks), 3, "m", torch.float32))


def _varied(draw: st.DrawFn, update: Update, magnitude: float) -> Update:
    A, B = update.A, update.B
    kind = draw(st.sampled_from(["plain", "plain", "zero B", "repeated row", "zero A"]))
    if kind == "zero B":
        B = torch.zeros_like(B)
    if kind == "zero A":
        A = torch.zeros_like(A)
    if kind == "repeated row":
        A = A[:1].expand_as(A).clone()
    dtype = draw(st.sampled_from(DTYPES))
    if dtype == torch.float16 and magnitude != 1.0:
        dtype = torch.float32  # float16 cannot hold 1e8
    return Update(A.to(dtype), B.to(dtype), update.scaling, update.weight, update.served_scaling)
