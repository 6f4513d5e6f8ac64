"""The paper's rule against the dense oracle, over anything Hypothesis can think of."""

import numpy as np
import pytest
import torch
from hypothesis import given

from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.truncate import Aggregate
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, Round, idle_update, product, random_round, rounds

FLEXLORA = strategy("flexlora")


def aggregate(case: Round, dtype: torch.dtype = torch.float32) -> Aggregate:
    return FLEXLORA.aggregate(case.updates, case.previous, dtype)


def test_by_hand() -> None:
    # .25 * 2 * [1 0]^T [1 2]  +  .75 * 1 * [0 1]^T [4 0]  =  [[.5 1] [3 0]]
    first = Update(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]]), 2.0, 0.25, 2.0)
    second = Update(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0], [1.0]]), 1.0, 0.75, 1.0)
    previous = GlobalFactors(B=torch.zeros(2, 2), A=torch.eye(2))
    result = FLEXLORA.aggregate([first, second], previous, torch.float32)
    assert torch.allclose(result.factors.B @ result.factors.A, torch.tensor([[0.5, 1.0], [3.0, 0.0]]), atol=1e-6)
    assert result.total_energy == pytest.approx(10.25)
    # W W^T = [[1.25 1.5] [1.5 9]]: trace 10.25, determinant 9
    largest = (10.25 + (10.25**2 - 36) ** 0.5) / 2
    assert result.singular_values == pytest.approx((largest**0.5, (10.25 - largest) ** 0.5))


@given(case=rounds())
def test_matches_the_oracle_at_every_rank(case: Round) -> None:
    result = aggregate(case)
    W = oracle.averaged(case.uploads)
    r_max = case.previous.A.shape[0]
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-9, abs=1e-300)
    for rank in range(1, r_max + 1):
        got, best = product(result.factors, rank), oracle.truncated(W, rank)
        if oracle.has_gap(W, rank):
            assert oracle.relative_error(got, best) < 1e-6
        # equal singular values have no unique truncation, but the error is still the smallest possible
        assert np.linalg.norm(W - got) <= np.linalg.norm(W - best) + 1e-6 * np.linalg.norm(W)


@given(case=rounds())
def test_rows_of_A_are_orthonormal_and_dead_directions_can_train(case: Round) -> None:
    factors = aggregate(case).factors
    r_max, k = factors.A.shape
    rows = factors.A[: min(r_max, k)].double()
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)).double(), atol=1e-6)
    assert torch.allclose(factors.A.norm(dim=1), torch.ones(r_max), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_A_is_representable_and_B_makes_the_best_of_it(dtype: torch.dtype) -> None:
    """Every direction is as near as its rounded row allows: what is left over is orthogonal to that row."""
    case = random_round([2, 5, 8])
    single, result = aggregate(case), aggregate(case, dtype)
    assert torch.equal(result.factors.A, result.factors.A.to(dtype).float())
    assert result.factors.B.dtype == torch.float32
    for j in range(8):
        exact = single.factors.B[:, j : j + 1].double() @ single.factors.A[j : j + 1].double()
        left = exact - result.factors.B[:, j : j + 1].double() @ result.factors.A[j : j + 1].double()
        assert float((left @ result.factors.A[j].double()).norm()) < 1e-6 * float(exact.norm())
    assert oracle.relative_error(product(result.factors), product(single.factors)) < 2 * torch.finfo(dtype).eps


def test_sums_are_not_taken_in_the_uploads_dtype() -> None:
    ones = torch.ones(1, 4, dtype=torch.bfloat16)
    updates = [Update(ones, torch.full((4, 1), value, dtype=torch.bfloat16), 1.0, 0.5, 1.0) for value in (256.0, 1.0)]
    result = FLEXLORA.aggregate(updates, GlobalFactors(torch.zeros(4, 1), torch.ones(1, 4)), torch.float32)
    assert product(result.factors) == pytest.approx(np.full((4, 4), 128.5), rel=1e-6)


def test_reports_64_singular_values() -> None:
    case = random_round([40, 50], d=70, k=80)
    sigma = oracle.singular_values(oracle.averaged(case.uploads))
    assert aggregate(case).singular_values == pytest.approx(tuple(sigma[:64]), rel=1e-9)


def test_low_ranks_make_the_tail_decay_when_nobody_learns() -> None:
    """sigma_j shrinks by c_j, the weight share of participants of rank >= j, in every idle round."""
    factors = aggregate(random_round([16])).factors
    shares = {4: 0.25, 8: 0.25, 16: 0.5}
    sigma = factors.B.double().norm(dim=0)
    decay = torch.tensor([1.0] * 4 + [0.75] * 4 + [0.5] * 8, dtype=torch.float64)
    for idle in range(1, 11):
        updates = [idle_update(factors, rank, 16 / rank, share, torch.float32) for rank, share in shares.items()]
        result = FLEXLORA.aggregate(updates, factors, torch.float32)
        factors = result.factors
        expected = sigma * decay**idle
        assert torch.allclose(factors.B.double().norm(dim=0), expected, rtol=1e-5)
        assert result.total_energy == pytest.approx(float(expected.square().sum()), rel=1e-5)


def test_a_round_of_zeros_keeps_every_direction_trainable() -> None:
    case = random_round([4])
    zeros = [idle_update(case.previous, 4, 1.0, 1.0, torch.float32)]
    result = FLEXLORA.aggregate(zeros, case.previous, torch.float32)
    assert not result.factors.B.any()
    assert (result.factors.A.norm(dim=1) > 0.99).all()
