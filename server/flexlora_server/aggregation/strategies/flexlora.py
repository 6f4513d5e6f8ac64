"""FlexLoRA, the paper's rule: average the products, then truncate (Bai et al. 2024, arXiv 2402.11505)."""

from collections.abc import Sequence

import torch

from flexlora_server.aggregation.check_updates import check_updates
from flexlora_server.aggregation.factors import GlobalFactors, Update, weighted_stack
from flexlora_server.aggregation.truncate import Aggregate, truncate


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """W = sum of p_i s_i B_i A_i, truncated to the largest rank served."""
    check_updates(updates, previous)
    return truncate(weighted_stack(updates), previous, dtype, error_bound)
