"""Tensors trained whole beside LoRA (a classification head, PEFT's `modules_to_save`): weighted averages."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from flexlora_server.aggregation.check_updates import check_finite, check_weights
from flexlora_server.aggregation.factors import named_generator
from flexlora_server.aggregation.truncate import to_float32
from flexlora_server.errors import AggregationError

Init = Literal["zeros", "ones", "normal"]


def weighted_average(weighted: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Sum of p_i T_i over pairs (T_i, p_i) of one shape and any float dtype, accumulated in float64; float32.

    An iterator may yield one tensor at a time, so that only one is in memory.

    Raises AggregationError for differing shapes, non-finite values, or weights that do not sum to 1.
    """
    total, weights = None, list[float]()
    for tensor, weight in weighted:
        index = len(weights)
        if total is None:
            total = torch.zeros_like(tensor, dtype=torch.float64)
        if tensor.shape != total.shape:
            raise AggregationError(f"tensor {index} has shape {tuple(tensor.shape)}, not {tuple(total.shape)}")
        check_finite(f"tensor {index}", tensor)
        total += weight * tensor.double()
        weights.append(weight)
        del tensor  # free it before the next one is read
    if total is None:
        raise AggregationError("there is no tensor to average: a round needs at least one accepted upload")
    check_weights(weights)
    return to_float32(total)


def initial_extra(shape: Sequence[int], init: Init, seed: int, name: str) -> Tensor:
    """The first value of an extra tensor, float32: zeros, ones, or normal with standard deviation 0.02."""
    if init == "zeros":
        return torch.zeros(*shape)
    if init == "ones":
        return torch.ones(*shape)
    if init == "normal":
        return 0.02 * torch.randn(*shape, generator=named_generator(seed, name))
    raise AggregationError(f"there is no initial value {init!r}: choose zeros, ones or normal")
