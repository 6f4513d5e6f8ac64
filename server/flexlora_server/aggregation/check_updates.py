"""Checks of a round's updates before a strategy combines them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.errors import AggregationError


def check_updates(updates: Sequence[Update], previous: GlobalFactors) -> None:
    """Raise AggregationError unless the updates fit the global update, are finite, and weights sum to 1."""
    if not updates:
        raise AggregationError("there is no update to aggregate: a round needs at least one accepted upload")
    check_weights([update.weight for update in updates])
    for index, update in enumerate(updates):
        _check_shapes(index, update, previous)
        _check_values(index, update)


def check_full_rank(name: str, updates: Sequence[Update], previous: GlobalFactors) -> None:
    """Raise AggregationError unless every update has the global update's rank."""
    ranks, r_max = {update.rank for update in updates}, previous.A.shape[0]
    if ranks != {r_max}:
        raise AggregationError(f"{name} needs every update at rank {r_max}, not {sorted(ranks)}")


def check_weights(weights: Sequence[float]) -> None:
    """Raise AggregationError unless the weights are finite, not negative, and sum to 1 (to 1e-6)."""
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise AggregationError(f"weights must be finite and not negative, not {list(weights)}")
    if abs(math.fsum(weights) - 1) > 1e-6:
        raise AggregationError(f"weights must sum to 1, not {math.fsum(weights)}: divide them by their sum")


def check_finite(what: str, tensor: Tensor) -> None:
    """Raise AggregationError naming `what` if the tensor holds a NaN or an infinity."""
    # a sum shows a NaN or an infinity as well, eight times faster; one that overflows decides nothing
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        raise AggregationError(f"{what} holds a NaN or an infinity")


def is_served_A(A: Tensor, stored: Tensor) -> bool:
    """Whether an uploaded lora_A (r, k) is the first r rows of the stored one, in the dtype it was sent in."""
    return torch.equal(A, stored[: A.shape[0]].to(A.dtype))


def _check_shapes(index: int, update: Update, previous: GlobalFactors) -> None:
    (d, r_max), k = previous.B.shape, previous.A.shape[1]
    rank = update.rank
    if not 1 <= rank <= r_max:
        raise AggregationError(f"update {index} has rank {rank}: the global update holds ranks 1 to {r_max}")
    if update.A.shape != (rank, k) or update.B.shape != (d, rank):
        raise AggregationError(
            f"update {index} has lora_A {tuple(update.A.shape)} and lora_B {tuple(update.B.shape)}: "
            f"this module needs ({rank}, {k}) and ({d}, {rank})"
        )
    base = update.base_or(previous)
    if base.B.shape != previous.B.shape or base.A.shape != previous.A.shape:
        raise AggregationError(f"update {index} was trained from a global update of other shapes than this module's")


def _check_values(index: int, update: Update) -> None:
    for name, scaling in (("scaling", update.scaling), ("served_scaling", update.served_scaling)):
        if not (math.isfinite(scaling) and scaling > 0):
            raise AggregationError(f"update {index} has {name} {scaling}: it must be positive and finite")
    check_finite(f"lora_A of update {index}", update.A)
    check_finite(f"lora_B of update {index}", update.B)
