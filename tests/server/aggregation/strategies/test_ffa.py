"""FFA-LoRA: exact with one A for all, and nothing else is taken."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.errors import AggregationError, UnsupportedRun
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, Round, product, random_round, random_update

FFA = strategy("ffa")


@st.composite
def frozen(draw: st.DrawFn, dtype: torch.dtype) -> Round:
    """Participants of one rank with the A they were served in `dtype`; any scalings and weights."""
    rank, d, k = draw(st.integers(1, 8)), draw(st.integers(2, 20)), draw(st.integers(2, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shares = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=5))
    previous = initial_factors(d, k, rank, 3, "m", dtype)
    updates = []
    for share in shares:
        scaling, size = (
            draw(st.sampled_from([1.0, 0.125, 16 / rank, 8 / rank**0.5])),
            draw(st.sampled_from([0.0, 1.0, 1e3])),
        )
        made = random_update(generator, d, k, rank, share / sum(shares), scaling, size)
        updates.append(replace(made, A=previous.A.to(dtype), B=made.B.to(dtype)))
    return Round(tuple(updates), previous)


def test_by_hand() -> None:
    # .25 * 2 * [4 0]^T  +  .75 * 1 * [0 4]^T  =  [2 3]^T
    A = torch.tensor([[1.0, 2.0]])
    first = Update(A, torch.tensor([[4.0], [0.0]]), 2.0, 0.25, 2.0)
    second = Update(A, torch.tensor([[0.0], [4.0]]), 1.0, 0.75, 1.0)
    result = FFA.aggregate([first, second], GlobalFactors(B=torch.zeros(2, 1), A=A), torch.float32)
    assert result.factors.B.tolist() == [[2.0], [3.0]]
    assert torch.equal(result.factors.A, A)
    assert result.total_energy == pytest.approx(13 * 5)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_it_is_exact(dtype: torch.dtype, data: st.DataObject) -> None:
    """The average of the products, as FlexLoRA's before it truncates, to float32's rounding; A never changes."""
    case = data.draw(frozen(dtype))
    result = FFA.aggregate(case.updates, case.previous, dtype)
    assert oracle.relative_error(product(result.factors), oracle.averaged(case.uploads)) < 1e-6
    assert torch.equal(result.factors.A, case.previous.A)


@pytest.mark.parametrize("dtype", DTYPES)
def test_A_may_be_sent_in_another_dtype_than_it_was_served_in(dtype: torch.dtype) -> None:
    case = random_round([6, 6])
    updates = [replace(update, A=case.previous.A.to(dtype)) for update in case.updates]
    assert torch.equal(FFA.aggregate(updates, case.previous, torch.float32).factors.A, case.previous.A)


def test_a_trained_A_is_refused() -> None:
    case = random_round([6, 6])
    same = replace(case.updates[0], A=case.previous.A)
    other = case.previous.A.clone()
    other[5, 3] += 1e-7
    with pytest.raises(AggregationError, match="lora_A of update 1 is not the one served: ffa trains lora_B alone"):
        FFA.aggregate([same, replace(case.updates[1], A=other)], case.previous, torch.float32)


@pytest.mark.parametrize("ranks", [[4, 8], []])
def test_a_run_with_mixed_ranks_is_refused(ranks: list[int]) -> None:
    with pytest.raises(UnsupportedRun, match=r"ffa .*needs one rank for all.*allow a single rank, or choose flexlora"):
        FFA.check(ranks)
    FFA.check([8])


def test_updates_of_another_rank_are_refused() -> None:
    with pytest.raises(AggregationError, match="ffa needs every update at rank 8"):
        FFA.aggregate(random_round([4, 8]).updates, random_round([8]).previous, torch.float32)
