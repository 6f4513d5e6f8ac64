"""HetLoRA against the paper's formula on dense matrices, and what padding must not destroy."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given

from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors, slice_factors
from flexlora_server.aggregation.strategies.hetlora import sparsity_weights
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.truncate import Aggregate
from flexlora_shared.messages.strategy_options import StrategyOptions
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, Round, product, random_round, rounds
from tests.server.aggregation.oracle import Matrix

HETLORA = strategy("hetlora")


def aggregate(case: Round, dtype: torch.dtype = torch.float32) -> Aggregate:
    return HETLORA.aggregate(case.updates, case.previous, dtype)


def shares(uploads: Sequence[oracle.Upload]) -> Matrix:
    """p_i |s_i B_i A_i| over their sum, from the dense products; p_i where nobody has a product."""
    sizes = np.array([upload.weight * np.linalg.norm(upload.product) for upload in uploads])
    return sizes / sizes.sum() if sizes.sum() > 0 else np.array([upload.weight for upload in uploads])


def padded(uploads: Sequence[oracle.Upload], previous_A: Matrix) -> tuple[Matrix, Matrix]:
    """The averages of the zero-padded factors: A with its old rows above the highest rank that counts, and B."""
    A, B = np.zeros_like(previous_A), np.zeros((uploads[0].B.shape[0], len(previous_A)))
    for upload, q in zip(uploads, shares(uploads), strict=True):
        A[: len(upload.A)] += q * upload.A
        B[:, : len(upload.A)] += q * upload.scaling * upload.B
    present = max(len(upload.A) for upload, q in zip(uploads, shares(uploads), strict=True) if q > 1e-6)
    A[present:] = previous_A[present:]
    return A, B


def test_by_hand() -> None:
    # |W_1| = 2 * 1 * 3 = 6 and |W_2| = 1 * 1 * 2 = 2; with p = (1/4, 3/4): q = 6/4 : 6/4 = 1/2 each
    first = Update(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 2.0, 0.25, 2.0)
    second = Update(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 1.0, 0.75, 1.0)
    previous = GlobalFactors(B=torch.ones(2, 3), A=torch.full((3, 2), 7.0))
    result = HETLORA.aggregate([first, second], previous, torch.float32)
    assert sparsity_weights([first, second]) == pytest.approx([0.5, 0.5])
    assert result.factors.A.tolist() == [[1.5, 1.0], [7.0, 7.0], [7.0, 7.0]]  # the second direction would be dead
    assert result.factors.B.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]
    assert result.singular_values[0] == pytest.approx((1.25 * 3.25) ** 0.5)


@given(case=rounds())
def test_matches_the_papers_formula(case: Round) -> None:
    r_max, k = case.previous.A.shape
    start = initial_factors(case.previous.B.shape[0], k, r_max + 2, 5, "m", torch.float32)
    result = HETLORA.aggregate(case.updates, start, torch.float32)
    A, B = padded(case.uploads, oracle.to_numpy(start.A))
    assert sparsity_weights(case.updates) == pytest.approx(shares(case.uploads).tolist(), rel=1e-9)
    assert oracle.relative_error(oracle.to_numpy(result.factors.A), A) < 1e-6
    assert oracle.relative_error(oracle.to_numpy(result.factors.B), B) < 1e-6
    W = oracle.to_numpy(result.factors.B) @ oracle.to_numpy(result.factors.A)
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
def test_A_is_representable_and_directions_above_the_highest_rank_present_keep_it(dtype: torch.dtype) -> None:
    case = random_round([2, 5, 3])
    previous = initial_factors(24, 40, 8, 7, "m", dtype)
    previous = replace(previous, B=torch.ones(24, 8))
    factors = HETLORA.aggregate(case.updates, previous, dtype).factors
    assert torch.equal(factors.A, factors.A.to(dtype).float())
    assert torch.equal(factors.A[5:], previous.A[5:])
    assert not bool(factors.B[:, 5:].any())
    assert bool(factors.A.any(dim=1).all())  # no direction has both factors at zero
    A, B = slice_factors(factors, 5, 2.0, dtype)
    assert torch.equal(A.float(), factors.A[:5])  # a slice is a prefix
    assert torch.equal(B, (factors.B[:, :5].double() / 2.0).to(dtype))


def test_a_participant_whose_product_is_nothing_does_not_count_as_present() -> None:
    """Its padding would be all there is in the upper directions, with weight 0."""
    case = random_round([2, 5])
    idle = replace(case.updates[1], B=torch.zeros(24, 5))
    factors = HETLORA.aggregate([case.updates[0], idle], case.previous, torch.float32).factors
    assert torch.equal(factors.A[:2], case.updates[0].A)
    assert torch.equal(factors.A[2:], case.previous.A[2:])


def test_nor_does_one_whose_product_is_next_to_nothing() -> None:
    """Its share is real, but what it would leave of A in the upper directions could never train again."""
    case = random_round([2, 5])
    faint = replace(case.updates[1], B=1e-9 * case.updates[1].B)
    factors = HETLORA.aggregate([case.updates[0], faint], case.previous, torch.float32).factors
    assert torch.equal(factors.A[2:], case.previous.A[2:])


def test_where_nobody_moved_B_the_examples_decide() -> None:
    case = random_round([4, 4])
    updates = [replace(update, B=torch.zeros(24, 4)) for update in case.updates]
    assert sparsity_weights(updates) == [update.weight for update in updates]
    factors = HETLORA.aggregate(updates, case.previous, torch.float32).factors
    assert torch.allclose(factors.A, updates[0].A / 3 + 2 * updates[1].A / 3, atol=1e-6)
    assert not bool(factors.B.any())


def test_equal_ranks_scalings_and_norms_are_the_plain_average() -> None:
    (update,) = random_round([6]).updates
    updates = [replace(update, weight=0.25), replace(update, A=-update.A, B=-update.B, weight=0.75)]
    result = aggregate(Round(tuple(updates), random_round([6]).previous))
    A, B = oracle.to_numpy(update.A), oracle.to_numpy(update.B)
    assert oracle.relative_error(product(result.factors), 0.25 * update.scaling * B @ A) < 1e-6  # (1/4 - 3/4) squared


@given(case=rounds())
def test_weighting_by_norm_alone_is_the_papers(case: Round) -> None:
    sizes = np.array([np.linalg.norm(upload.product) for upload in case.uploads])
    q = sizes / sizes.sum() if sizes.sum() > 0 else np.array([upload.weight for upload in case.uploads])
    assert sparsity_weights(case.updates, "norm") == pytest.approx(q.tolist(), rel=1e-9)
    weighed = [replace(update, weight=1 / len(q)) for update in case.updates]
    papers = HETLORA.aggregate(case.updates, case.previous, torch.float32, options=StrategyOptions(weighting="norm"))
    if sizes.sum() > 0:  # the shares of the examples do not count
        assert (
            oracle.relative_error(
                product(papers.factors), product(aggregate(Round(tuple(weighed), case.previous)).factors)
            )
            < 1e-5
        )


def test_any_mix_of_ranks_can_be_served() -> None:
    HETLORA.check([2, 4, 200])
