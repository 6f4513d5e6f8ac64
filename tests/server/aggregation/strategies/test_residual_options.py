"""The options of the residual rule, `leak` and `shrink`: against the oracle, with late, clipped and idle updates."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.filters.reweight import Shares
from flexlora_server.aggregation.filters.split import split
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.messages.strategy_options import StrategyOptions
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, idle_update, product
from tests.server.aggregation.strategies.test_residual import MIX, RESIDUAL, learned, published

EVERY = StrategyOptions(leak=0.3, shrink=0.5)


def served_to(update: Update, previous: GlobalFactors, dtype: torch.dtype) -> oracle.Matrix:
    base, s = update.base_or(previous), update.served_scaling
    B = oracle.rounded(oracle.to_numpy(base.B)[:, : update.rank] / s, str(dtype).removeprefix("torch."))
    served: oracle.Matrix = s * B @ oracle.to_numpy(base.A)[: update.rank]
    return served


def uploads_of(updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype) -> list[oracle.Upload]:
    return [
        oracle.Upload(oracle.to_numpy(u.A), oracle.to_numpy(u.B), u.scaling, u.weight, served_to(u, previous, dtype))
        for u in updates
    ]


def with_late(updates: Sequence[Update], dtype: torch.dtype) -> list[Update]:
    """The last two trained on an older global update."""
    older = published(dtype)
    older = replace(older, B=older.B * 0.5)
    late = [replace(u, base=older) for u in learned(older, dtype, seed=8)[-2:]]
    return [*updates[:-2], *late]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [StrategyOptions(leak=0.3), StrategyOptions(shrink=0.5), EVERY], ids=str)
@pytest.mark.parametrize("late", [False, True])
def test_matches_the_oracle(dtype: torch.dtype, options: StrategyOptions, late: bool) -> None:
    previous = published(dtype)
    updates = learned(previous, dtype, seed=1)
    updates = with_late(updates, dtype) if late else updates
    uploads = uploads_of(updates, previous, dtype)
    W = oracle.leaky(product(previous), uploads, options.leak)
    sigma = oracle.shrunk(W, uploads, options.shrink, 16)
    result = RESIDUAL.aggregate(updates, previous, dtype, options=options)
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-9)
    assert result.singular_values[:16] == pytest.approx(tuple(sigma), abs=1e-8)
    assert not options.shrink or len(result.singular_values) == 16
    U, _, Vt = np.linalg.svd(W, full_matrices=False)
    accuracy = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for rank in (2, 5, 16):
        want = (U[:, :rank] * sigma[:rank]) @ Vt[:rank]
        assert oracle.relative_error(product(result.factors, rank), want) < accuracy


def test_a_whole_leak_is_the_papers_rule() -> None:
    previous = published(torch.float32)
    updates = with_late(learned(previous, torch.float32, seed=1), torch.float32)
    leaky = RESIDUAL.aggregate(updates, previous, torch.float32, options=StrategyOptions(leak=1.0))
    papers = strategy("flexlora").aggregate(updates, previous, torch.float32)
    for rank in range(1, 17):
        assert oracle.relative_error(product(leaky.factors, rank), product(papers.factors, rank)) < 1e-6
    assert leaky.total_energy == pytest.approx(papers.total_energy, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_idle_rounds_change_no_bit_with_shrink(dtype: torch.dtype) -> None:
    start = RESIDUAL.aggregate(learned(published(dtype), dtype, seed=2), published(dtype), dtype).factors
    updates = [idle_update(start, rank, s, weight, dtype, 4.0) for rank, s, weight in MIX]
    after = RESIDUAL.aggregate(updates, start, dtype, options=StrategyOptions(shrink=0.5)).factors
    assert torch.equal(after.A, start.A)
    assert torch.equal(after.B, start.B)


def test_a_leak_lets_go_of_what_was_served_to_nobody() -> None:
    """The paper's rule multiplies it by the share that was served it; a leak of g goes g of the way there."""
    previous = published(torch.float32)
    updates = [idle_update(previous, 4, 2.0, 0.75, torch.float32), idle_update(previous, 16, 1.0, 0.25, torch.float32)]
    after = RESIDUAL.aggregate(updates, previous, torch.float32, options=StrategyOptions(leak=0.2)).factors
    want = product(previous, 4) + (1 - 0.2 * 0.75) * (product(previous) - product(previous, 4))
    assert oracle.relative_error(product(after), want) < 1e-6


def test_a_clipped_change_disagrees_by_its_clipped_length() -> None:
    """Two of one direction, a hundred times longer before it was clipped: the same global update as if it had been sent short."""
    previous = published(torch.float32)
    short, other = (replace(u, weight=0.5) for u in learned(previous, torch.float32, seed=3)[:2])
    served = idle_update(previous, short.rank, short.served_scaling, 0.5, torch.float32)
    A, step = served.A, short.B - served.B
    short, long = (replace(short, A=A, B=served.B + by * step) for by in (1.0, 100.0))
    shares = Shares((0.005, 0.5), (0.495, 0.0), ((), ()))
    options = StrategyOptions(shrink=0.5)
    clipped = split([long, other], shares, previous, torch.float32, fresh=False)
    got = RESIDUAL.aggregate(clipped, previous, torch.float32, options=options)
    want = RESIDUAL.aggregate([short, other], previous, torch.float32, options=options)
    assert got.singular_values == pytest.approx(want.singular_values, rel=1e-4)
    unshrunk = RESIDUAL.aggregate([short, other], previous, torch.float32)
    assert want.singular_values[-1] < 0.9 * unshrunk.singular_values[15]


def test_who_agrees_shrinks_nothing_and_what_all_hold_never_shrinks() -> None:
    previous = published(torch.float32)
    updates = learned(previous, torch.float32, seed=4)
    shrunk = RESIDUAL.aggregate(updates, previous, torch.float32, options=StrategyOptions(shrink=0.5))
    plain = RESIDUAL.aggregate(updates, previous, torch.float32)
    assert shrunk.singular_values[:2] == pytest.approx(plain.singular_values[:2], rel=1e-12)  # all ranks are at least 2
    assert shrunk.singular_values[15] < plain.singular_values[15]
    alike = [replace(updates[0], weight=share) for share in (0.25, 0.75)]
    same = RESIDUAL.aggregate(alike, previous, torch.float32, options=StrategyOptions(shrink=0.5))
    once = RESIDUAL.aggregate(alike, previous, torch.float32)
    assert same.singular_values[:16] == pytest.approx(once.singular_values[:16], abs=1e-6)


def test_shrinking_costs_the_energy_kept_and_no_more_than_all() -> None:
    previous = published(torch.float32)
    updates = learned(previous, torch.float32, seed=4)
    result = RESIDUAL.aggregate(updates, previous, torch.float32, options=StrategyOptions(shrink=1e6))
    assert all(value == 0 for value in result.singular_values[2:])
    assert float(result.factors.B[:, 2:].abs().max()) == 0
    assert bool(result.factors.A.any(dim=1).all())  # directions of no weight still train
    kept = sum(value**2 for value in result.singular_values)
    assert 0 < kept < result.total_energy
