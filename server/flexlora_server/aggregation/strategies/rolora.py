"""RoLoRA: B and A are trained in turn, so that averaging one of them is exact (Chen et al. 2025, arXiv 2502.01755).

In odd rounds agents train B with A frozen, in even ones A with B frozen; everybody has the same frozen factor, so

    sum of p_i s_i B_i A = (sum of p_i s_i B_i) A    and    sum of p_i s_i B A_i = t B (sum of p_i (s_i / t) A_i)

with t the scaling of the slice served: what is averaged apart is the average of the products, as with `ffa`, but A learns
too. Round 1 trains B, which is 0: A would have no gradient. One rank for all, as in the paper. A round's updates tell which
factor they changed; where nobody changed any, nothing changes.

Where it fails: a round moves one factor alone, so that it takes more rounds; and it serves one rank. In half precision an even
round's products have B as it was served, rounded, while the stored one keeps its digits: they differ by that rounding.
"""

from collections.abc import Sequence

import torch

from flexlora_server.aggregation.check_updates import check_full_rank, check_updates, is_served_A
from flexlora_server.aggregation.extra_tensors import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update, kept_trainable, rounded, slice_factors
from flexlora_server.aggregation.truncate import Aggregate, without_truncation
from flexlora_server.errors import AggregationError


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """The factor that was trained, averaged; the other one as it is."""
    check_updates(updates, previous)
    check_full_rank("rolora", updates, previous)
    kept_A = [is_served_A(update.A, previous.A) for update in updates]
    kept_B = [_is_served_B(update, previous, dtype) for update in updates]
    if all(kept_A) and all(kept_B):
        return without_truncation(previous)
    if all(kept_A):
        B = weighted_average((update.scaling * update.B.double(), update.weight) for update in updates)
        return without_truncation(GlobalFactors(B=B, A=rounded(previous.A, dtype)))
    if all(kept_B):
        A = weighted_average((u.scaling / u.served_scaling * u.A.double(), u.weight) for u in updates)
        return without_truncation(kept_trainable(GlobalFactors(B=previous.B, A=rounded(A, dtype)), previous))
    raise AggregationError("these updates changed both factors: rolora trains one of them in a round")


def _is_served_B(update: Update, previous: GlobalFactors, dtype: torch.dtype) -> bool:
    """Whether lora_B is the served one, in the dtype it was sent in."""
    served = slice_factors(previous, update.rank, update.served_scaling, dtype)[1]
    return torch.equal(update.B, served.to(update.B.dtype))
