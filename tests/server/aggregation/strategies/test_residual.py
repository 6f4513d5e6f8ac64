"""Residual FlexLoRA: exact against the oracle, still when nobody learns, the paper's rule when ranks are equal."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, idle_update, product, random_round, to_oracle

RESIDUAL = strategy("flexlora-residual")
MIX = ((2, 8.0, 0.1), (3, 0.7, 0.2), (5, 1.3, 0.15), (8, 2.0, 0.25), (8, 3.0, 0.2), (16, 1.0, 0.1))


def published(dtype: torch.dtype) -> GlobalFactors:
    """A global update after a first round, as it is served in `dtype`."""
    case = random_round([4, 16, 16])
    return strategy("flexlora").aggregate(case.updates, case.previous, dtype).factors


def learned(factors: GlobalFactors, dtype: torch.dtype, seed: int) -> list[Update]:
    """Participants of mixed ranks and scalings that trained on what they were served."""
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for rank, scaling, weight in MIX:
        A, B = slice_factors(factors, rank, scaling, dtype)
        A = A.float() + 0.05 * torch.randn(A.shape, generator=generator)
        B = B.float() + 0.01 * torch.randn(B.shape, generator=generator)
        updates.append(Update(A.to(dtype), B.to(dtype), scaling, weight, scaling))
    return updates


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_oracle(dtype: torch.dtype) -> None:
    previous = published(dtype)
    name = str(dtype).removeprefix("torch.")
    uploads = []
    updates = learned(previous, dtype, seed=1)
    for update in updates:
        A, B, s = oracle.to_numpy(update.A), oracle.to_numpy(update.B), update.served_scaling
        served = s * oracle.rounded(oracle.to_numpy(previous.B)[:, : update.rank] / s, name)
        uploads.append(
            oracle.Upload(A, B, update.scaling, update.weight, served @ oracle.to_numpy(previous.A)[: update.rank])
        )
    W = oracle.residual(product(previous), uploads)
    result = RESIDUAL.aggregate(updates, previous, dtype)
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-10)
    assert result.singular_values == pytest.approx(tuple(oracle.singular_values(W)), abs=1e-10)
    accuracy = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    for rank in range(1, 17):
        assert oracle.relative_error(product(result.factors, rank), oracle.truncated(W, rank)) < accuracy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rescale", [1.0, 4.0])
def test_twenty_idle_rounds_change_nothing(dtype: torch.dtype, rescale: float) -> None:
    """Whatever the mix of ranks and scalings, and whatever scaling the same product is uploaded with."""
    factors = start = RESIDUAL.aggregate(learned(published(dtype), dtype, seed=2), published(dtype), dtype).factors
    for _ in range(20):
        updates = [idle_update(factors, rank, s, weight, dtype, rescale) for rank, s, weight in MIX]
        result = RESIDUAL.aggregate(updates, factors, dtype)
        factors = result.factors
    assert torch.equal(factors.A, start.A)
    assert torch.equal(factors.B, start.B)
    assert result.total_energy == pytest.approx(float(np.linalg.norm(product(start))) ** 2, rel=1e-10)


def test_idle_rounds_that_only_look_different_change_nothing_either() -> None:
    """The same products from other factors, so that every round is decomposed anew: float32 rounding at most."""
    factors = start = published(torch.float32)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        updates = []
        for rank, scaling, weight in MIX:
            idle = idle_update(factors, rank, scaling, weight, torch.float32, rescale=3.0)
            turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator).double()).Q
            updates.append(Update(turn.T @ idle.A.double(), idle.B.double() @ turn, idle.scaling, weight, scaling))
        factors = RESIDUAL.aggregate(updates, factors, torch.float32).factors
    assert not torch.equal(factors.A, start.A)
    for rank in (2, 3, 5, 8, 16):
        assert oracle.relative_error(product(factors, rank), product(start, rank)) < 1e-5


@pytest.mark.parametrize("factor", ["A", "B"])
def test_the_smallest_change_of_one_factor_counts(factor: str) -> None:
    previous = published(torch.float32)
    updates = [idle_update(previous, rank, s, weight, torch.float32) for rank, s, weight in MIX]
    served = updates[0]
    change = 1e-3 * (served.A if factor == "A" else served.B)
    moved = replace(served, A=served.A + change) if factor == "A" else replace(served, B=served.B + change)
    result = RESIDUAL.aggregate([moved, *updates[1:]], previous, torch.float32)
    W = product(previous) + served.weight * (to_oracle(moved).product - to_oracle(served).product)
    assert oracle.relative_error(product(previous), W) > 1e-5
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-10)
    sigma = oracle.singular_values(W)[: len(result.singular_values)]
    assert result.singular_values == pytest.approx(tuple(sigma), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_rounding_takes_from_a_slice_is_given_back(dtype: torch.dtype) -> None:
    """One of two learns: W is the old update plus the change exactly, although both were served rounded slices."""
    previous = published(dtype)
    idle = idle_update(previous, 2, 0.7, 0.5, dtype)
    A, B = slice_factors(previous, 5, 1.3, dtype)
    moved = Update(A, (B.float() * 1.5).to(dtype), 1.3, 0.5, 1.3)
    change = 0.5 * 1.3 * (oracle.to_numpy(moved.B) - oracle.to_numpy(B)) @ oracle.to_numpy(A)
    result = RESIDUAL.aggregate([idle, moved], previous, dtype)
    sigma = oracle.singular_values(product(previous) + change)[: len(result.singular_values)]
    assert result.singular_values == pytest.approx(tuple(sigma), abs=1e-10)


def test_equal_ranks_make_it_the_papers_rule() -> None:
    previous = published(torch.float32)
    generator = torch.Generator().manual_seed(4)
    updates = []
    for weight, scaling in ((0.2, 1.0), (0.3, 2.0), (0.5, 0.5)):
        A, B = slice_factors(previous, 16, scaling, torch.float32)
        B = B + 0.1 * torch.randn(B.shape, generator=generator)
        updates.append(Update(A + 0.1 * torch.randn(A.shape, generator=generator), B, scaling, weight, scaling))
    ours = RESIDUAL.aggregate(updates, previous, torch.float32)
    papers = strategy("flexlora").aggregate(updates, previous, torch.float32)
    assert ours.singular_values[:16] == pytest.approx(papers.singular_values[:16], rel=1e-6)
    for rank in range(1, 17):
        assert oracle.relative_error(product(ours.factors, rank), product(papers.factors, rank)) < 1e-6


def test_the_first_round_is_the_papers_rule() -> None:
    case = random_round([2, 5, 8])
    ours = RESIDUAL.aggregate(case.updates, case.previous, torch.float32)
    papers = strategy("flexlora").aggregate(case.updates, case.previous, torch.float32)
    assert oracle.relative_error(product(ours.factors), product(papers.factors)) < 1e-6


def test_a_tail_only_the_highest_rank_was_served_survives_its_absence() -> None:
    previous = published(torch.float32)
    updates = [idle_update(previous, 4, 2.0, 1.0, torch.float32)]
    kept = RESIDUAL.aggregate(updates, previous, torch.float32)
    lost = strategy("flexlora").aggregate(updates, previous, torch.float32)
    assert oracle.relative_error(product(kept.factors), product(previous)) < 1e-6
    assert not lost.factors.B[:, 4:].any()
