"""Residual FlexLoRA: aggregate what changed, so that what low ranks cannot carry is not lost.

The paper's rule multiplies sigma_j by the weight share of participants with rank >= j in every round, whether
or not anyone learns. Here W = D_old + sum of p_i (s_i B_i A_i - served_i), with served_i the slice as it was
served, rounding included. Column j of a slice is s * cast(B_j / s) and its rows of A are exact, so
D_old - sum of p_i served_i is one more block, (B_old - B_served) @ A_old, in the same stack. What comes late was served from
an older update: its change is measured against that, and each such update is a block of its own, -B_served @ A_older.

Three options make it forget. `leak` g in [0, 1] lets go a share of what nobody trained:

    W = sum of p_i s_i B_i A_i + (1 - g) (D_old - sum of p_i served_i)

g = 1 is the paper's rule, g = 0 the residual one. Where participants send back what they want, a direction trained by a share c
of them settles at c / (c + g (1 - c)) of it: a Wiener filter whose ratio of noise to signal is g. Tensors beside LoRA do not
leak. What a participant holds frozen counts as not trained: served_i is what it trained of its slice.
`shrink` takes from what few train as much as participants disagree: see `shrinkage`. `energy` serves no more directions
than a share of W's energy needs: see `energy`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.check_updates import check_updates
from flexlora_server.aggregation.factors import GlobalFactors, SliceKind, Update, bases, slice_factors, weighted_stack
from flexlora_server.aggregation.strategies.energy import leading
from flexlora_server.aggregation.strategies.shrinkage import disagreement, shrunk
from flexlora_server.aggregation.svd.stack import Stack
from flexlora_server.aggregation.svd.truncated_svd import TruncatedSVD
from flexlora_server.aggregation.truncate import Aggregate, truncate, without_truncation

# Two float64 products of the same float32 numbers that differ by less are the same update.
_RELATIVE_TOLERANCE = 1e-14


def aggregate(
    updates: Sequence[Update],
    previous: GlobalFactors,
    dtype: torch.dtype,
    error_bound: float = 1.0,
    *,
    leak: float = 0.0,
    shrink: float = 0.0,
    energy: float = 1.0,
) -> Aggregate:
    """W = D_old + sum of p_i (s_i B_i A_i - served_i), truncated to the largest rank served; options: see the module."""
    check_updates(updates, previous)
    cut_from = bases(updates, previous)
    served = {kind: _served_B(base, kind.scaling, dtype) for kind, base in cut_from.items()}
    if leak == 0 and all(
        _is_as_served(u, u.base_or(previous).A[: u.rank], served[u.kind][:, : u.rank]) for u in updates
    ):
        return _unchanged(previous)
    stack = _changed(updates, previous, served, 1 - leak, previous.B.double())
    if shrink == 0 and energy == 1:
        return truncate(stack, previous, dtype, error_bound, begins_with_updates=True)
    noise = 0.0
    if shrink > 0:
        mean = _changed(updates, previous, served, 1.0, torch.zeros_like(previous.B, dtype=torch.float64))
        noise = shrink * disagreement(updates, previous, served, mean)

    def values(svd: TruncatedSVD) -> Tensor:
        return torch.minimum(shrunk(svd, updates, noise), leading(svd, energy))

    return truncate(stack, previous, dtype, error_bound, values, begins_with_updates=True)


def _changed(
    updates: Sequence[Update], previous: GlobalFactors, served: Mapping[SliceKind, Tensor], kept: float, B: Tensor
) -> Stack:
    """What was uploaded, and `kept` times B @ A_old less what was served: a block for each global update served from."""
    stack = weighted_stack(updates).plus(kept * (B - _sent_back(updates, served, None)), previous.A)
    for late in {id(u.base): u.base for u in updates if u.base is not None}.values():
        stack = stack.plus(-kept * _sent_back(updates, served, late), late.A)
    return stack


def _sent_back(updates: Sequence[Update], served: Mapping[SliceKind, Tensor], base: GlobalFactors | None) -> Tensor:
    """The sum of p_i s_i B over what was served from one global update, float64; 0 where nothing was."""
    total = torch.zeros(updates[0].B.shape[0], 1, dtype=torch.float64, device=updates[0].B.device)
    for kind, B in sorted(((kind, B) for kind, B in served.items() if kind.base == id(base)), key=lambda item: item[0]):
        total = total + _share(updates, kind, B.shape[1]).to(B.device) * B.double()
    return total


def _served_B(previous: GlobalFactors, scaling: float, dtype: torch.dtype) -> Tensor:
    """lora_B as served at the largest rank; that of every lower rank is a prefix of it."""
    return slice_factors(previous, previous.A.shape[0], scaling, dtype)[1]


def _share(updates: Sequence[Update], kind: SliceKind, r_max: int) -> Tensor:
    """(r_max,): the weight with which column j of lora_B, as served in this kind of slice, is part of the uploads."""
    share = torch.zeros(r_max, dtype=torch.float64)
    for update in updates:
        if update.kind == kind:
            share[: update.rank] += update.weight * kind.scaling
    return share


def _is_as_served(update: Update, A: Tensor, B: Tensor) -> bool:
    if not torch.equal(update.A.double(), A.double()):
        return False
    uploaded, served = update.scaling * update.B.double(), update.served_scaling * B.double()
    return torch.allclose(uploaded, served, rtol=_RELATIVE_TOLERANCE, atol=0.0)


def _unchanged(previous: GlobalFactors) -> Aggregate:
    """No update learned anything: decomposing again would round A to the served dtype again, and W would drift."""
    return without_truncation(previous)
