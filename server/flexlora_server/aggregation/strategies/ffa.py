"""FFA-LoRA: A stays as it was drawn and only B is trained, so that averaging is exact (Sun et al., ICLR 2024, arXiv 2403.12313).

With one A for everybody, sum of p_i s_i B_i A = (sum of p_i s_i B_i) A: what is averaged apart is the average of the products.
That holds only while every A_i is the A served, so an update with another one is refused.
"""

from collections.abc import Sequence

import torch

from flexlora_server.aggregation.check_updates import check_full_rank, check_updates, is_served_A
from flexlora_server.aggregation.extra_tensors import weighted_average
from flexlora_server.aggregation.factors import GlobalFactors, Update, rounded
from flexlora_server.aggregation.truncate import Aggregate, without_truncation
from flexlora_server.errors import AggregationError


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """B = sum of p_i s_i B_i, A = round 0's seeded A, at one rank."""
    check_updates(updates, previous)
    check_full_rank("ffa", updates, previous)
    for index, update in enumerate(updates):
        if not is_served_A(update.A, previous.A):
            raise AggregationError(f"lora_A of update {index} is not the one served: ffa trains lora_B alone")
    B = weighted_average((update.scaling * update.B.double(), update.weight) for update in updates)
    return without_truncation(GlobalFactors(B=B, A=rounded(previous.A, dtype)))
