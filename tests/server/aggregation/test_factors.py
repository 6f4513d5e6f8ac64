"""Slices and the initial factors."""

import math

import numpy as np
import pytest
import torch

from flexlora_server.aggregation.factors import GlobalFactors, initial_factors, rounded, slice_factors
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, random_round


@pytest.mark.parametrize("dtype", DTYPES)
def test_slice_is_a_rounded_prefix(dtype: torch.dtype) -> None:
    factors = initial_factors(6, 9, 5, 0, "m", dtype)
    factors = GlobalFactors(B=torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), A=factors.A)
    A, B = slice_factors(factors, 3, 0.7, dtype)
    assert (A.dtype, B.dtype, A.shape, B.shape) == (dtype, dtype, (3, 9), (6, 3))
    assert torch.equal(A.float(), factors.A[:3])
    name = str(dtype).removeprefix("torch.")
    expected = oracle.rounded(oracle.to_numpy(factors.B)[:, :3] / 0.7, name)
    assert np.array_equal(oracle.to_numpy(B), expected)


@pytest.mark.parametrize("rank", [0, 17])
def test_slice_refuses_a_rank_it_does_not_hold(rank: int) -> None:
    with pytest.raises(AggregationError, match="holds ranks 1 to 16"):
        slice_factors(random_round([16]).previous, rank, 1.0, torch.float32)


def test_slice_refuses_to_overflow() -> None:
    factors = GlobalFactors(B=torch.full((2, 1), 1e5), A=torch.ones(1, 2))
    with pytest.raises(AggregationError, match=r"does not fit into torch\.float16"):
        slice_factors(factors, 1, 1.0, torch.float16)
    with pytest.raises(AggregationError, match="must be positive and finite"):
        slice_factors(factors, 1, 0.0, torch.float32)


def test_rounding_refuses_to_overflow() -> None:
    assert rounded(torch.tensor([65_504.0]), torch.float16).tolist() == [65_504.0]
    with pytest.raises(AggregationError, match=r"does not fit into torch\.float16"):
        rounded(torch.tensor([1.0, 1e5]), torch.float16)
    with pytest.raises(AggregationError, match=r"does not fit into torch\.bfloat16"):
        rounded(torch.tensor([3.4e38]), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_factors(dtype: torch.dtype) -> None:
    factors = initial_factors(8, 400, 16, 5, "q_proj", dtype)
    assert not factors.B.any()
    assert factors.B.shape == (8, 16)
    assert factors.A.dtype == torch.float32
    assert torch.equal(factors.A, factors.A.to(dtype).float())
    bound = 1 / math.sqrt(400)  # Kaiming-uniform with a = sqrt(5), as PEFT: U(-1/sqrt(k), 1/sqrt(k))
    assert 0.99 * bound < factors.A.abs().max() <= bound * (1 + 2**-8)
    assert factors.A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_initial_factors_depend_on_seed_and_name_only() -> None:
    first = initial_factors(4, 10, 3, 5, "q_proj", torch.float32).A
    initial_factors(4, 10, 3, 5, "k_proj", torch.float32)
    assert torch.equal(first, initial_factors(4, 10, 3, 5, "q_proj", torch.float32).A)
    assert not torch.equal(first, initial_factors(4, 10, 3, 5, "k_proj", torch.float32).A)
    assert not torch.equal(first, initial_factors(4, 10, 3, 6, "q_proj", torch.float32).A)


def test_initial_factors_refuse_a_dtype_nobody_is_served() -> None:
    with pytest.raises(AggregationError, match="choose float32, float16 or bfloat16"):
        initial_factors(4, 10, 3, 5, "q_proj", torch.float64)
