"""The oracle itself, against numbers worked out by hand and torch's own rounding."""

import numpy as np
import pytest
import torch

from tests.server.aggregation import oracle


def test_weighted_sum_by_hand() -> None:
    first = oracle.Upload(A=np.array([[1.0, 2.0]]), B=np.array([[1.0], [0.0]]), scaling=2.0, weight=0.25)
    second = oracle.Upload(A=np.array([[4.0, 0.0]]), B=np.array([[0.0], [1.0]]), scaling=1.0, weight=0.75)
    assert oracle.averaged([first, second]).tolist() == [[0.5, 1.0], [3.0, 0.0]]


def test_truncation_by_hand() -> None:
    W = np.array([[0.0, 3.0], [-2.0, 0.0]])
    assert np.allclose(oracle.truncated(W, 1), [[0.0, 3.0], [0.0, 0.0]])
    assert np.allclose(oracle.truncated(W, 2), W)
    assert oracle.energy_kept(W, [1, 2]) == pytest.approx([9 / 13, 1.0])


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_rounding_is_what_torch_does(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double()
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11], dtype=torch.float64)
    for values in (x, ties):
        assert np.array_equal(oracle.rounded(values.numpy(), name), values.to(dtype).double().numpy())
