"""Tensors trained whole beside LoRA (a classification head, PEFT's `modules_to_save`): weighted averages."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flexlora_server.aggregation.check import check_finite, check_weights
from flexlora_server.aggregation.errors import AggregationError
from flexlora_server.aggregation.factors import named_generator
from flexlora_server.aggregation.truncate import to_float32

Init = Literal["zeros", "ones", "normal"]


def weighted_average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of p_i T_i over tensors of one shape and any float dtype, accumulated in float64; float32.

    Raises AggregationError for differing shapes, non-finite values, or weights that do not sum to 1.
    """
    if not tensors or len(tensors) != len(weights):
        raise AggregationError(f"cannot average {len(tensors)} tensors with {len(weights)} weights")
    check_weights(weights)
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for index, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        if tensor.shape != total.shape:
            raise AggregationError(f"tensor {index} has shape {tuple(tensor.shape)}, not {tuple(total.shape)}")
        check_finite(f"tensor {index}", tensor)
        total += weight * tensor.double()
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
