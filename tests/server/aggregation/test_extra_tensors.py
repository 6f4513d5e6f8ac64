"""Extra tensors: averages and first values."""

import weakref

import pytest
import torch

from flexlora_server.aggregation.extra_tensors import initial_extra, weighted_average
from flexlora_server.errors import AggregationError


def test_average_by_hand() -> None:
    result = weighted_average([(torch.tensor([1.0, 2.0]), 0.25), (torch.tensor([5.0, 6.0]), 0.75)])
    assert result.tolist() == [4.0, 5.0]
    assert result.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_average_of_many_is_accumulated_in_float64(dtype: torch.dtype) -> None:
    tensors = [torch.full((3,), 1.0 if index else 0.5, dtype=dtype) for index in range(1000)]
    assert weighted_average((tensor, 0.001) for tensor in tensors).tolist() == pytest.approx([0.9995] * 3, rel=1e-7)


def test_average_of_one_value_for_a_scalar() -> None:
    assert weighted_average([(torch.tensor(3.0), 1.0)]).item() == 3.0


def test_average_refuses() -> None:
    one = torch.ones(2)
    with pytest.raises(AggregationError, match=r"tensor 1 has shape \(3,\), not \(2,\)"):
        weighted_average([(one, 0.5), (torch.ones(3), 0.5)])
    with pytest.raises(AggregationError, match="tensor 0 holds a NaN"):
        weighted_average([(one * float("nan"), 1.0)])
    with pytest.raises(AggregationError, match="weights must sum to 1"):
        weighted_average([(one, 0.5), (one, 0.6)])
    with pytest.raises(AggregationError, match="there is no tensor to average"):
        weighted_average([])


def test_one_tensor_at_a_time_is_in_memory() -> None:
    read: list[weakref.ref[torch.Tensor]] = []

    def upload() -> torch.Tensor:
        assert all(earlier() is None for earlier in read)
        tensor = torch.ones(2)
        read.append(weakref.ref(tensor))
        return tensor

    assert weighted_average((upload(), 0.25) for _ in range(4)).tolist() == [1.0, 1.0]
    assert len(read) == 4


def test_initial_values() -> None:
    assert initial_extra((2, 3), "zeros", 0, "score").tolist() == [[0.0] * 3] * 2
    assert initial_extra((2,), "ones", 0, "norm").tolist() == [1.0, 1.0]
    normal = initial_extra((200, 50), "normal", 0, "score")
    assert normal.std().item() == pytest.approx(0.02, rel=0.03)
    assert torch.equal(normal, initial_extra((200, 50), "normal", 0, "score"))
    assert not torch.equal(normal, initial_extra((200, 50), "normal", 0, "other"))
    assert not torch.equal(normal, initial_extra((200, 50), "normal", 1, "score"))


def test_an_unknown_initial_value_is_refused() -> None:
    with pytest.raises(AggregationError, match="choose zeros, ones or normal"):
        initial_extra((2,), "xavier", 0, "score")  # type: ignore[arg-type]
