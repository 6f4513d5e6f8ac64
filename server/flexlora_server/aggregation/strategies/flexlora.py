"""FlexLoRA, the paper's rule: average the products, then truncate (Bai et al. 2024, arXiv 2402.11505).

Option `energy`: what carries the least energy is not served, see `energy`.
"""

from collections.abc import Sequence
from functools import partial

import torch

from flexlora_server.aggregation.check_updates import check_updates
from flexlora_server.aggregation.factors import GlobalFactors, Update, weighted_stack
from flexlora_server.aggregation.strategies.energy import leading
from flexlora_server.aggregation.truncate import Aggregate, truncate


def aggregate(
    updates: Sequence[Update],
    previous: GlobalFactors,
    dtype: torch.dtype,
    error_bound: float = 1.0,
    *,
    energy: float = 1.0,
) -> Aggregate:
    """W = sum of p_i s_i B_i A_i, truncated to the largest rank served."""
    check_updates(updates, previous)
    changed = partial(leading, energy=energy) if energy < 1 else None
    return truncate(weighted_stack(updates), previous, dtype, error_bound, changed, begins_with_updates=True)
