"""Soft thresholding of singular values by how much participants disagree, for the residual rule's option `shrink`.

After the residual step sigma_j becomes max(0, sigma_j - kappa (1 - c_j) tau), with c_j the weight share of participants who
train rank j or more, and D_i the change of participant i, as filters left it:

    tau^2 = (sum of p_i |D_i|^2 - |sum of p_i D_i|^2) / r_max

What everybody trains is not shrunk; what few train is noise to the degree that their changes differ. Thresholds do not fall
with j, so singular values stay in order. It takes honest difference between participants for noise: where their data differ
much, leave it at 0. It costs a Gram matrix of all factors, or the dense mean change where that is cheaper. A shortened change
c D is an upload at the weight p c and one as served at p (1 - c): hence p |c D|^2 is its weight times `length` times |D|^2.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, SliceKind, Update
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.svd.truncated_svd import TruncatedSVD


def shrunk(svd: TruncatedSVD, updates: Sequence[Update], noise: float) -> Tensor:
    """The singular values (r,) less `noise` times the share of the weight that does not train each direction, at least 0."""
    absent = torch.ones_like(svd.S)
    for update in updates:
        absent[: update.rank] -= update.weight
    shrunk_: Tensor = (svd.S - noise * absent.clamp(min=0)).clamp(min=0)
    return shrunk_


def disagreement(
    updates: Sequence[Update], previous: GlobalFactors, served: Mapping[SliceKind, Tensor], mean: Stack
) -> float:
    """tau. `served`: lora_B as served at the largest rank, of each kind of slice; `mean`: the sum of p_i D_i."""
    each = math.fsum(
        u.weight * u.length * squared_norm(_change(u, u.base_or(previous), served[u.kind])) for u in updates
    )
    return math.sqrt(max(0.0, each - squared_norm(mean)) / previous.A.shape[0])


def _change(update: Update, base: GlobalFactors, served_B: Tensor) -> Stack:
    """s B A - t B0 A0 = (s B - t B0) A0 + s B (A - A0): differences first, so that a small change is not lost in rounding."""
    B, A0 = update.scaling * update.B.double(), base.A[: update.rank]
    B0 = update.served_scaling * served_B[:, : update.rank].double()
    return Stack([Term(B - B0, A0, 1.0), Term(B, update.A.double() - A0.double(), 1.0)])


def squared_norm(stack: Stack) -> float:
    """The squared Frobenius norm of the stack's W, float64."""
    d, R, k = stack.shape
    if R * (d + k) > d * k:
        return float(stack.dense().square().sum())
    of_B, of_A = stack.grams()
    scales = stack.scales
    return max(0.0, float((scales[:, None] * of_B * scales * of_A).sum()))
