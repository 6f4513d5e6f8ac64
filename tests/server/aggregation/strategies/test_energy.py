"""The option `energy`: the fewest directions that reach the share, the others still trainable."""

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.diagnostics import energy_kept
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.messages.strategy_options import StrategyOptions
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, idle_update, product, random_round


@pytest.mark.parametrize("name", ["flexlora", "flexlora-residual"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95, 1.0])
def test_the_fewest_directions_that_reach_the_share_are_served(name: str, dtype: torch.dtype, share: float) -> None:
    case = random_round([4, 8, 16])
    result = strategy(name).aggregate(case.updates, case.previous, dtype, options=StrategyOptions(energy=share))
    W = oracle.averaged(case.uploads)  # the residual rule's too: nothing was served yet
    squared = oracle.singular_values(W) ** 2
    count = min(16, int(np.searchsorted(np.cumsum(squared), share * squared.sum() * (1 - 1e-12))) + 1)
    assert not bool(result.factors.B[:, count:].any())
    assert bool(result.factors.B[:, :count].any(dim=0).all())
    assert bool(result.factors.A.any(dim=1).all())
    accuracy = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert oracle.relative_error(product(result.factors), oracle.truncated(W, count)) < accuracy
    assert result.total_energy == pytest.approx(float(squared.sum()), rel=1e-9)
    ((_, kept),) = energy_kept(result, [16])
    assert kept == pytest.approx(float(squared[:count].sum() / squared.sum()), rel=1e-2)
    assert kept >= min(share, float(squared[:16].sum() / squared.sum())) * (1 - 2 * torch.finfo(dtype).eps)


def test_it_takes_nothing_from_a_residual_round_in_which_nobody_learned() -> None:
    case = random_round([4, 16])
    start = strategy("flexlora").aggregate(case.updates, case.previous, torch.float32).factors
    updates = [idle_update(start, rank, 2.0, 0.5, torch.float32) for rank in (4, 16)]
    options = StrategyOptions(energy=0.5)
    after = strategy("flexlora-residual").aggregate(updates, start, torch.float32, options=options).factors
    assert torch.equal(after.A, start.A)
    assert torch.equal(after.B, start.B)
