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
from flexlora_server.aggregation.svd import factored_svd
from flexlora_server.aggregation.truncate import reported, truncate

# Two float64 products of the same float32 numbers: what differs by less is the same update.
_SAME = 1e-14


class ResidualFlexLora:
    """W = D_old + sum of p_i (s_i B_i A_i - served_i), truncated to the largest rank served."""

    name = "flexlora-residual"
    averages_factors = False

    def check(self, ranks: Sequence[int]) -> None:
        """Any mix of ranks can be served."""

    def aggregate(self, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype) -> Aggregate:
        check_updates(updates, previous)
        slices = [slice_factors(previous, u.rank, u.served_scaling, dtype) for u in updates]
        if all(_is_as_served(u, *served) for u, served in zip(updates, slices, strict=True)):
            return _unchanged(previous)
        residual = previous.B.to(torch.float64, copy=True)
        for update, (_, B) in zip(updates, slices, strict=True):
            residual[:, : update.rank] -= update.weight * update.served_scaling * B.double()
        stack_B, stack_A = weighted_stack(updates)
        B, A = torch.cat([stack_B, residual], dim=1), torch.cat([stack_A, previous.A.double()])
        return truncate(B, A, previous, dtype)


def _is_as_served(update: Update, A: Tensor, B: Tensor) -> bool:
    if not torch.equal(update.A.double(), A.double()):
        return False
    uploaded, served = update.scaling * update.B.double(), update.served_scaling * B.double()
    return torch.allclose(uploaded, served, rtol=_SAME, atol=0.0)


def _unchanged(previous: GlobalFactors) -> Aggregate:
    """Nobody learned: decomposing again would round A to the served dtype again, and W would drift."""
    svd = factored_svd(previous.B, previous.A, previous.A.shape[0])
    return Aggregate(previous, reported(svd), svd.total_energy)
