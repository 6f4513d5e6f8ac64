"""HetLoRA: factors of mixed ranks padded with zeros and averaged apart, sparse updates weighing less (Cho et al., EMNLP 2024).

The paper (arXiv 2401.06432, figure 2) pads every A_i and B_i to the largest rank, averages each with the weights
n_i / sum of n_j, where n_i = |B_i A_i| (Frobenius), and serves a prefix of the result. It weighs by these norms alone, and
has one scaling. Here a participant's share of the examples p_i counts too, and scalings may differ:

    q_i = p_i n_i / sum of p_j n_j    with n_i = |s_i B_i A_i| = s_i sqrt(tr((B_i^T B_i)(A_i A_i^T)))
    B = sum of q_i s_i [B_i 0],  A = sum of q_i [A_i; 0]

With equal shares and scalings that is the paper's rule; with the option `weighting` "norm" it is for any shares, p_i left out of
q_i. Where nobody moved B (all n_i = 0), q_i = p_i. The paper's pruning of
ranks during local training is not part of this: a participant keeps the rank that it declares.

Plain padding would set both factors to zero above the highest rank present, and a direction with A = B = 0 has no gradient:
it would never train again. There A stays as it was, with B = 0; an update of next to no weight counts as absent. So it does
where all that are present send A = B = 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from flexlora_server.aggregation.check_updates import check_updates
from flexlora_server.aggregation.extra_tensors import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update, kept_trainable, rounded
from flexlora_server.aggregation.truncate import Aggregate, without_truncation
from flexlora_shared.messages.strategy_options import Weighting

MIN_WEIGHT = 1e-6  # an update of less weight does not count as present: the A that it leaves could never train again


def aggregate(
    updates: Sequence[Update],
    previous: GlobalFactors,
    dtype: torch.dtype,
    error_bound: float = 1.0,
    *,
    weighting: Weighting = "examples-and-norm",
) -> Aggregate:
    """Zero-padded factors, averaged apart with weights q_i; see the module."""
    check_updates(updates, previous)
    weights, r_max = sparsity_weights(updates, weighting), previous.A.shape[0]
    B = weighted_average((_padded_B(update, r_max), q) for update, q in zip(updates, weights, strict=True))
    A = weighted_average((_padded_A(update, r_max), q) for update, q in zip(updates, weights, strict=True))
    present = max(update.rank for update, q in zip(updates, weights, strict=True) if q > MIN_WEIGHT)
    A[present:] = previous.A[present:]
    return without_truncation(kept_trainable(GlobalFactors(B=B, A=rounded(A, dtype)), previous))


def sparsity_weights(updates: Sequence[Update], weighting: Weighting = "examples-and-norm") -> list[float]:
    """q_i, the share of each update: they sum to 1."""
    sizes = [(update.weight if weighting == "examples-and-norm" else 1.0) * _norm(update) for update in updates]
    total = math.fsum(sizes)
    return [size / total for size in sizes] if total > 0 else [update.weight for update in updates]


def _norm(update: Update) -> float:
    """|s B A|, without forming the product."""
    A, B = update.A.double(), update.B.double()
    return update.scaling * math.sqrt(max(0.0, float(((B.mT @ B) * (A @ A.mT)).sum())))


def _padded_B(update: Update, r_max: int) -> Tensor:
    return pad(update.scaling * update.B.double(), (0, r_max - update.rank))


def _padded_A(update: Update, r_max: int) -> Tensor:
    return pad(update.A.double(), (0, 0, 0, r_max - update.rank))
