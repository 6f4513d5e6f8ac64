"""RoLoRA: the factor that was trained is averaged exactly, the other keeps its bits, and both at once are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, product, random_round, to_oracle

ROLORA = strategy("rolora")
WHO = ((2.0, 1.0, 0.2), (2.0, 3.0, 0.3), (2.0, 2.0, 0.5))  # scaling served, sent with, weight


def trained(factors: GlobalFactors, dtype: torch.dtype, factor: str, seed: int, step: float = 0.1) -> list[Update]:
    generator, updates = torch.Generator().manual_seed(seed), []
    for served_scaling, scaling, weight in WHO:
        A, B = slice_factors(factors, 6, served_scaling, dtype)
        if factor == "A":
            A = (A.float() + step * torch.randn(A.shape, generator=generator)).to(dtype)
        else:
            B = (B.float() + step * torch.randn(B.shape, generator=generator)).to(dtype)
        updates.append(Update(A, B, scaling, weight, served_scaling))
    return updates


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounds_in_turn_match_the_oracle(dtype: torch.dtype) -> None:
    factors = random_round([6]).previous
    factors = replace(factors, A=factors.A.to(dtype).float())
    for number in (1, 2, 3, 4):
        factor = ROLORA.trained_in(number)
        updates = trained(factors, dtype, factor, seed=number)
        W = oracle.averaged([to_oracle(update) for update in updates])
        after = ROLORA.aggregate(updates, factors, dtype).factors
        kept, moved = ("A", "B") if factor == "B" else ("B", "A")
        assert torch.equal(getattr(after, kept), getattr(factors, kept))
        assert not torch.equal(getattr(after, moved), getattr(factors, moved))
        accuracy = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert oracle.relative_error(product(after), W) < accuracy
        factors = after
    assert [ROLORA.trained_in(number) for number in (1, 2, 3, 4)] == ["B", "A", "B", "A"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_round_in_which_nobody_learned_changes_nothing(dtype: torch.dtype) -> None:
    factors = random_round([6]).previous
    start = ROLORA.aggregate(trained(factors, dtype, "B", 1), replace(factors, A=factors.A.to(dtype).float()), dtype)
    after = ROLORA.aggregate(trained(start.factors, dtype, "A", 2, step=0.0), start.factors, dtype)
    assert torch.equal(after.factors.A, start.factors.A)
    assert torch.equal(after.factors.B, start.factors.B)
    assert after.total_energy == pytest.approx(float(np.linalg.norm(product(start.factors))) ** 2, rel=1e-9)


def test_who_trains_the_other_factor_or_both_is_refused() -> None:
    factors = strategy("fedavg").aggregate(random_round([6]).updates, random_round([6]).previous, torch.float32).factors
    of_A, of_B = (trained(factors, torch.float32, factor, 1) for factor in ("A", "B"))
    both = [*of_A[:2], replace(of_A[2], B=of_B[2].B)]
    for mixed in ([*of_A[:2], of_B[2]], both):
        with pytest.raises(AggregationError, match="rolora trains one of them in a round"):
            ROLORA.aggregate(mixed, factors, torch.float32)
