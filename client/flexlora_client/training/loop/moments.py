"""AdamW's moments, carried over from one pair of LoRA factors to another of (nearly) the same product.

After a round the participant holds B A; it is served B' A' next, other factors of a product near to it, for the singular
value decomposition chooses them. With G the gradient of the loss in the product, and without the constant scaling,

    dL/dA = B^T G        dL/dB = G A^T

Let A' = M A and B' = B N (r x r matrices; N = M^-1 where the product is the same). Then the gradients in the new factors,
of the same G, are

    dL/dA' = N^T dL/dA   dL/dB' = dL/dB M^T

and so are the first moments, which are sums of gradients. M and N are found apart, each by least squares,
M = A' A^+ and N = B^+ B': neither has to be inverted, and what of the new factors lies outside the old ones' span, where
others' updates came in, gets no moment. The second moments are sums of squares of elements; the transformed ones are
exact only with the products of any two rows' gradients, which AdamW does not keep. Taken as uncorrelated, they
transform by the squares of the matrices' elements:

    v_A' = (N o N)^T v_A   v_B' = v_B (M o M)^T
"""

from collections.abc import Mapping
from typing import Any

import torch

LORA_A, LORA_B = ".lora_A.", ".lora_B."


class CannotProject(Exception):
    """The state does not fit; the message says why."""


def projected(
    state: dict[str, Any], old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The stepper's state with the moments of every pair of factors carried over from `old` to `new`, by parameter name.

    Tensors beside LoRA, and factors trained without their partner, keep their moments.

    Raises:
        CannotProject: the optimizer's state is not AdamW's.
    """
    number = {name: index for index, name in enumerate(new)}
    by_number: dict[int, dict[str, torch.Tensor]] = dict(state["optimizer"]["state"])
    if not all({"exp_avg", "exp_avg_sq"} <= each.keys() for each in by_number.values()):
        raise CannotProject("only AdamW's moments can be projected")
    for name_A in (name for name in new if LORA_A in name):
        name_B = name_A.replace(LORA_A, LORA_B)
        if name_B not in new:
            continue
        M = _least_squares(old[name_A].mT, new[name_A].mT).mT
        N = _least_squares(old[name_B], new[name_B])
        by_number[number[name_A]] = _transformed(by_number[number[name_A]], N.mT, "left")
        by_number[number[name_B]] = _transformed(by_number[number[name_B]], M.mT, "right")
    return {**state, "optimizer": {**state["optimizer"], "state": by_number}}


def _least_squares(columns: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The X with the least |columns X - target|, float64; columns that depend on others get the smallest X."""
    inverse: torch.Tensor = torch.linalg.pinv(columns.detach().cpu().double(), rtol=1e-6)
    return inverse @ target.detach().cpu().double()


def _transformed(moments: Mapping[str, torch.Tensor], matrix: torch.Tensor, side: str) -> dict[str, torch.Tensor]:
    first, second = moments["exp_avg"], moments["exp_avg_sq"]

    def times(by: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        wide = tensor.double()
        return (by @ wide if side == "left" else wide @ by).to(tensor.dtype)

    return {**moments, "exp_avg": times(matrix, first), "exp_avg_sq": times(matrix.square(), second)}
