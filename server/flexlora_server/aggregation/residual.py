"""Residual FlexLoRA: aggregate what changed, so that what low ranks cannot carry is not lost.

The paper's rule multiplies sigma_j by the weight share of participants with rank >= j in every round, whether
or not anyone learns. Here W = D_old + sum of p_i (s_i B_i A_i - served_i), with served_i the slice as it was
served, rounding included. Column j of a slice is s * cast(B_j / s) and its rows of A are exact, so
D_old - sum of p_i served_i is one more block, (B_old - B_served) @ A_old, in the same stack.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.check import check_updates
from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors, weighted_stack
from flexlora_server.aggregation.strategy import Aggregate
from flexlora_server.aggregation.truncate import as_they_are, truncate
from flexlora_shared.messages.tasks import Trainable

# Two float64 products of the same float32 numbers: what differs by less is the same update.
_SAME = 1e-14


class ResidualFlexLora:
    """W = D_old + sum of p_i (s_i B_i A_i - served_i), truncated to the largest rank served."""

    name = "flexlora-residual"
    averages_factors = False
    agents_train: Trainable = "slice"

    def check(self, ranks: Sequence[int]) -> None:
        """Any mix of ranks can be served."""

    def aggregate(
        self, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
    ) -> Aggregate:
        check_updates(updates, previous)
        served = {scaling: _served_B(previous, scaling, dtype) for scaling in {u.served_scaling for u in updates}}
        if all(_is_as_served(u, previous.A[: u.rank], served[u.served_scaling][:, : u.rank]) for u in updates):
            return _unchanged(previous)
        residual = previous.B.double() - sum(
            _share(updates, scaling, previous.A.shape[0]).to(B.device) * B.double()
            for scaling, B in sorted(served.items())
        )
        return truncate(weighted_stack(updates).and_(residual, previous.A), previous, dtype, error_bound)


def _served_B(previous: GlobalFactors, scaling: float, dtype: torch.dtype) -> Tensor:
    """lora_B as served at the largest rank; every rank's is a prefix, so that nothing is kept for each participant."""
    return slice_factors(previous, previous.A.shape[0], scaling, dtype)[1]


def _share(updates: Sequence[Update], scaling: float, r_max: int) -> Tensor:
    """(r_max,): how much of column j of lora_B, as served at this scaling, came back with some upload."""
    share = torch.zeros(r_max, dtype=torch.float64)
    for update in updates:
        if update.served_scaling == scaling:
            share[: update.rank] += update.weight * scaling
    return share


def _is_as_served(update: Update, A: Tensor, B: Tensor) -> bool:
    if not torch.equal(update.A.double(), A.double()):
        return False
    uploaded, served = update.scaling * update.B.double(), update.served_scaling * B.double()
    return torch.allclose(uploaded, served, rtol=_SAME, atol=0.0)


def _unchanged(previous: GlobalFactors) -> Aggregate:
    """Nobody learned: decomposing again would round A to the served dtype again, and W would drift."""
    return as_they_are(previous)
