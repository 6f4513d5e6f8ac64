"""Products with a sum of terms against the dense sum, in pieces of any size."""

import pytest
import torch

from flexlora_server.aggregation.svd import stack as module
from flexlora_server.aggregation.svd.stack import Stack, Term
from tests.server.aggregation import oracle
from tests.server.aggregation.svd.stacks import dense, gaussian


def mixed() -> Stack:
    """Terms of every upload dtype, different ranks and scales, and one float64 block as the residual strategy adds."""
    generator = torch.Generator().manual_seed(0)
    terms = []
    for rank, dtype, scale in ((3, torch.float32, 0.5), (1, torch.float16, 2.0), (7, torch.bfloat16, -0.25)):
        B, A = torch.randn(150, rank, generator=generator), torch.randn(rank, 90, generator=generator)
        terms.append(Term(B.to(dtype), A.to(dtype), scale))
    block = torch.randn(150, 2, generator=generator, dtype=torch.float64)
    return Stack(terms).plus(block, torch.randn(2, 90, generator=generator))


@pytest.mark.parametrize("piece", [1, 1000, 1 << 18])
def test_every_product_is_the_dense_one(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", piece)
    monkeypatch.setattr(module, "GROUP_COLUMNS", 4)
    stack = mixed()
    W, generator = torch.from_numpy(dense(stack)), torch.Generator().manual_seed(1)
    V, Q = torch.randn(90, 5, generator=generator), torch.randn(150, 5, generator=generator)
    assert stack.shape == (150, 13, 90)
    assert torch.allclose(stack.dense(), W, atol=1e-12)
    assert torch.allclose(stack.times(V).double(), W @ V.double(), atol=1e-4)
    assert torch.allclose(stack.transposed_times(Q).double(), W.mT @ Q.double(), atol=1e-4)
    B, A = stack.factors()
    assert torch.allclose(B @ A, W, atol=1e-12)
    of_B, of_A = stack.grams()
    raw = B / stack.scales
    assert torch.allclose(of_B, raw.mT @ raw, atol=1e-10)
    assert torch.allclose(of_A, A @ A.mT, atol=1e-10)
    X = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    assert torch.allclose(stack.B_times(X), raw @ X, atol=1e-10)
    assert torch.allclose(stack.times_A(X.mT), X.mT @ A, atol=1e-10)


@pytest.mark.parametrize("alone", [2, 5, 100])
def test_wide_products_join_terms(monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    monkeypatch.setattr(module, "WIDE", 5)
    monkeypatch.setattr(module, "WIDE_COLUMNS", 4)
    monkeypatch.setattr(module, "ALONE", alone)
    stack = mixed()
    W, generator = torch.from_numpy(dense(stack)), torch.Generator().manual_seed(1)
    V, Q = torch.randn(90, 5, generator=generator), torch.randn(150, 5, generator=generator)
    assert torch.allclose(stack.times(V).double(), W @ V.double(), atol=1e-4)
    assert torch.allclose(stack.transposed_times(Q).double(), W.mT @ Q.double(), atol=1e-4)


def test_rank_one_norms_by_hand() -> None:
    stack = Stack([Term(torch.tensor([[3.0, 0.0], [4.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]]), -2.0)])
    assert stack.rank_one_norms == pytest.approx(2 * (5 * 1 + 2 * 5))


def test_norms_beyond_float32_squares() -> None:
    stack = Stack([Term(torch.tensor([[3e30]]), torch.tensor([[2.0]]), 1.0)])
    assert stack.rank_one_norms == pytest.approx(6e30)


def test_a_view_that_is_not_contiguous_counts_as_its_numbers() -> None:
    """Memory-mapped tensors are views; so are repeated rows."""
    wide = gaussian(20, 30, [6]).terms[0]
    term = Term(wide.B[:, ::2], wide.A[:1].expand(3, 30), 1.0)
    W = torch.from_numpy(dense(Stack([term])))
    assert torch.allclose(Stack([term]).times(torch.eye(30)).double(), W, atol=1e-6)
    assert oracle.relative_error(Stack([term]).dense().numpy(), W.numpy()) < 1e-12
