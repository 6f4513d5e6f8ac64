"""FLoRA: what was served and everybody's fresh adapters add up; the dense oracle says so."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.truncate import Aggregate
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, Round, product, random_round, random_update, rounds

FLORA = strategy("flora")


def aggregate(case: Round, dtype: torch.dtype = torch.float32) -> Aggregate:
    return FLORA.aggregate(case.updates, case.previous, dtype)


def test_by_hand() -> None:
    # [[1 0] [0 0]]  +  .25 * 2 * [1 0]^T [0 2]  +  .75 * 1 * [0 1]^T [4 0]  =  [[1 1] [3 0]]
    first = Update(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0], [0.0]]), 2.0, 0.25, 2.0)
    second = Update(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0], [1.0]]), 1.0, 0.75, 1.0)
    previous = GlobalFactors(B=torch.tensor([[1.0, 0.0], [0.0, 0.0]]), A=torch.eye(2))
    result = aggregate(Round((first, second), previous))
    assert torch.allclose(result.factors.B @ result.factors.A, torch.tensor([[1.0, 1.0], [3.0, 0.0]]), atol=1e-6)
    assert result.total_energy == pytest.approx(11)


@given(case=rounds(), size=st.sampled_from([0.0, 1.0, 1e4]), seed=st.integers(0, 2**31))
def test_matches_the_oracle_at_every_rank(case: Round, size: float, seed: int) -> None:
    (d, r_max), k = case.previous.B.shape, case.previous.A.shape[1]
    made = random_update(torch.Generator().manual_seed(seed), d, k, r_max, 1.0, size=size)
    case = replace(case, previous=strategy("flexlora").aggregate([made], case.previous, torch.float32).factors)
    result = aggregate(case)
    W = product(case.previous) + oracle.averaged(case.uploads)
    for rank in range(1, r_max + 1):
        got, best = product(result.factors, rank), oracle.truncated(W, rank)
        if oracle.has_gap(W, rank):
            assert oracle.relative_error(got, best) < 1e-6
        assert np.linalg.norm(W - got) <= np.linalg.norm(W - best) + 1e-6 * np.linalg.norm(W)


def test_rounds_add_up_while_the_largest_rank_holds_them() -> None:
    """Three rounds of ranks 2 and 3: fifteen directions, in a global update of rank 16."""
    factors, total = initial_factors(24, 40, 16, 7, "m", torch.float32), np.zeros((24, 40))
    for seed in range(3):
        case = random_round([2, 3], seed=seed)
        factors = FLORA.aggregate(case.updates, factors, torch.float32).factors
        total = total + oracle.averaged(case.uploads)
        assert oracle.relative_error(product(factors), total) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_round_in_which_nobody_learned_changes_nothing(dtype: torch.dtype) -> None:
    """To the bit: decomposed again, A would be rounded to the served dtype again, and the global update would drift."""
    before = aggregate(random_round([2, 8]), dtype).factors
    idle = [replace(update, B=torch.zeros_like(update.B)) for update in random_round([2, 8], seed=1).updates]
    after = FLORA.aggregate(idle, before, dtype)
    assert torch.equal(after.factors.A, before.A)
    assert torch.equal(after.factors.B, before.B)
    assert after.total_energy == pytest.approx(float(np.linalg.norm(product(before))) ** 2, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_A_is_kept_exact_whatever_is_served(dtype: torch.dtype) -> None:
    """Rounded, all that was learned before would lose a little in every round."""
    case = random_round([2, 5, 8])
    assert torch.equal(aggregate(case, dtype).factors.A, aggregate(case, torch.float32).factors.A)


def test_any_mix_of_ranks_can_be_served() -> None:
    FLORA.check([2, 4, 200])
