"""The truncated SVD of a stack against numpy's dense one, and what it promises whatever the route."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.svd.truncated_svd import TruncatedSVD, complete_rows, decompose
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle


def factors(d: int, R: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, R, generator=generator), torch.randn(R, k, generator=generator)


def factored_svd(B: Tensor, A: Tensor, rank: int) -> TruncatedSVD:
    return decompose(Stack([Term(B, A, 1.0)]), rank)


def check(result: TruncatedSVD, B: Tensor, A: Tensor, rank: int) -> None:
    W = oracle.to_numpy(B) @ oracle.to_numpy(A)
    sigma = oracle.singular_values(W)
    assert result.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-10)
    assert np.allclose(result.singular_values.numpy(), sigma[: len(result.singular_values)], atol=1e-11 * sigma[0])
    for r in range(1, rank + 1):
        got = oracle.to_numpy(result.US)[:, :r] @ oracle.to_numpy(result.Vt)[:r]
        assert oracle.relative_error(got, oracle.truncated(W, r)) < 1e-8


@pytest.mark.parametrize(
    "shape", [(30, 8, 20), (20, 8, 30), (12, 40, 60), (60, 40, 12), (16, 40, 16), (9, 9, 9), (1, 3, 5)]
)
def test_matches_the_dense_svd(shape: tuple[int, int, int]) -> None:
    B, A = factors(*shape)
    check(factored_svd(B, A, 6), B, A, 6)


def test_singular_values_are_as_many_as_the_rank_can_be() -> None:
    for shape, count in (((59, 58, 59), 58), ((9, 4, 6), 4), ((5, 40, 6), 5)):
        assert len(factored_svd(*factors(*shape), 2).singular_values) == count


def test_by_hand() -> None:
    result = factored_svd(torch.tensor([[0.0, 3.0], [-2.0, 0.0]]), torch.eye(2), 2)
    assert result.S.tolist() == pytest.approx([3.0, 2.0])
    assert result.US.tolist() == [[pytest.approx(3.0), 0.0], [0.0, pytest.approx(2.0)]]
    assert torch.allclose(result.Vt, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double())
    assert result.total_energy == pytest.approx(13.0)


def test_sign_convention() -> None:
    B, A = factors(30, 8, 20)
    result = factored_svd(B, A, 8)
    assert (result.US.gather(0, result.US.abs().argmax(dim=0, keepdim=True)) > 0).all()
    assert torch.equal(factored_svd(-B, -A, 8).US.sign(), result.US.sign())


def test_sign_of_a_tie_is_the_first_entry() -> None:
    result = factored_svd(torch.tensor([[-1.0], [1.0], [-1.0]]), torch.tensor([[1.0, 0.0]]), 1)
    assert result.US[0, 0] > 0
    assert result.Vt[0, 0] < 0


@pytest.mark.parametrize("shape", [(30, 8, 20), (12, 40, 60)])
def test_a_rank_deficient_product_is_completed(shape: tuple[int, int, int]) -> None:
    B, A = factors(*shape)
    A[2:] = A[1]
    result = factored_svd(B, A, 6)
    assert (result.S > 0).tolist() == [True, True, False, False, False, False]
    assert not (result.US)[:, 2:].any()
    assert torch.allclose(result.Vt @ result.Vt.T, torch.eye(6).double(), atol=1e-12)
    assert result.singular_values[2:].tolist() == [0.0] * (len(result.singular_values) - 2)


def test_zero_is_completed() -> None:
    result = factored_svd(torch.zeros(5, 3), torch.zeros(3, 7), 4)
    assert not result.US.any()
    assert not result.S.any()
    assert torch.allclose(result.Vt @ result.Vt.T, torch.eye(4).double(), atol=1e-12)
    assert result.total_energy == 0.0


def test_what_cancels_is_zero() -> None:
    B, A = (factor.double() for factor in factors(30, 8, 20))
    result = factored_svd(torch.cat([B, -0.3 * B], dim=1), torch.cat([0.3 * A, A]), 4)
    assert not result.S.any()


def test_small_directions_survive_beside_large_ones() -> None:
    B, A = factors(30, 2, 20)
    B[:, 1] *= 1e-9
    result = factored_svd(B, A, 2)
    W = oracle.to_numpy(B) @ oracle.to_numpy(A)
    tail = W - oracle.truncated(W, 1)
    got = oracle.to_numpy(result.US)[:, 1:] @ oracle.to_numpy(result.Vt)[1:]
    assert oracle.relative_error(got, tail) < 1e-5


def test_a_rank_beyond_the_matrix() -> None:
    B, A = factors(5, 4, 3)
    result = factored_svd(B, A, 8)
    assert (result.US.shape, result.S.shape, result.Vt.shape) == ((5, 8), (8,), (8, 3))
    check(result, B, A, 3)
    assert torch.allclose(result.Vt.norm(dim=1), torch.ones(8).double())


@given(j=st.integers(0, 6), more=st.integers(0, 12), k=st.integers(6, 15), seed=st.integers(0, 1000))
def test_completion_is_orthonormal(j: int, more: int, k: int, seed: int) -> None:
    Vt = torch.linalg.qr(torch.randn(k, j, generator=torch.Generator().manual_seed(seed)).double()).Q.T
    rows = min(j + more, k)
    completed = complete_rows(Vt, rows)
    assert torch.equal(completed[:j], Vt)
    assert torch.allclose(completed @ completed.T, torch.eye(rows).double(), atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_non_finite_values(value: float) -> None:
    B, A = factors(5, 4, 3)
    A[2, 1] = value
    with pytest.raises(AggregationError, match="hold a NaN or an infinity"):
        factored_svd(B, A, 2)


def test_refuses_shapes_that_do_not_multiply() -> None:
    with pytest.raises(AggregationError, match=r"cannot decompose \(5, 4\) @ \(3, 3\)"):
        factored_svd(torch.ones(5, 4), torch.ones(3, 3), 2)
