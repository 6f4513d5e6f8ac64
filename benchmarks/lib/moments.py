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

import torch
from torch import Tensor

Moments = Mapping[str, Tensor]  # of one tensor, as AdamW's state names them


def projected(of_A: Moments, of_B: Moments, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> list[Moments]:
    """The moments of A and of B, carried over from the factors `old` to `new`: each A (r, k) and B (d, r)."""
    M = _least_squares(old[0].mT, new[0].mT).mT
    N = _least_squares(old[1], new[1])
    return [_transformed(of_A, N.mT, left=True), _transformed(of_B, M.mT, left=False)]


def _least_squares(columns: Tensor, target: Tensor) -> Tensor:
    """The X with the least |columns X - target|, float64; columns that depend on others get the smallest X."""
    inverse: Tensor = torch.linalg.pinv(columns.double(), rtol=1e-6)
    return inverse @ target.double()


def _transformed(moments: Moments, matrix: Tensor, *, left: bool) -> Moments:
    def times(by: Tensor, tensor: Tensor) -> Tensor:
        wide = tensor.double()
        return (by @ wide if left else wide @ by).to(tensor.dtype)

    first, second = moments["exp_avg"], moments["exp_avg_sq"]
    return {**moments, "exp_avg": times(matrix, first), "exp_avg_sq": times(matrix.square(), second)}
