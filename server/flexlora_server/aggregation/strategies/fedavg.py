"""FedAvg on the factors: A and B averaged separately, at one rank (FedIT, arXiv 2305.05644).

Where every participant sends A = 0 and B = 0 for a direction, A stays as it was: it would never train again.
"""

from collections.abc import Sequence

import torch

from flexlora_server.aggregation.check_updates import check_full_rank, check_updates
from flexlora_server.aggregation.extra_tensors import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update, kept_trainable, rounded
from flexlora_server.aggregation.truncate import Aggregate, without_truncation


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """B = sum of p_i s_i B_i, A = sum of p_i A_i: with equal scalings the served B is the plain average."""
    check_updates(updates, previous)
    check_full_rank("fedavg", updates, previous)
    B = weighted_average((update.scaling * update.B.double(), update.weight) for update in updates)
    A = rounded(weighted_average((update.A, update.weight) for update in updates), dtype)
    return without_truncation(kept_trainable(GlobalFactors(B=B, A=A), previous))
