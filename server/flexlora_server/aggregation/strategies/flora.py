"""FLoRA: everybody trains a fresh adapter, and the stack of all of them is added (Wang et al., NeurIPS 2024, arXiv 2409.05976).

Stacked side by side, [p_1 s_1 B_1 ... p_n s_n B_n] [A_1; ...; A_n] = sum of p_i s_i B_i A_i, with no error from averaging the
factors apart, at any mix of ranks. In the paper the coordinator sends the whole stack, everybody merges it into the base
model, and the next fresh adapter is trained on top. Here the global update D stands for what has been merged so far:

    D_new = D_old + sum of p_i s_i B_i A_i

Exact as long as the run's largest rank holds it, else its best approximation at that rank: what is served stays one
adapter whose size does not grow with rounds and participants. A participant of a lower rank trains on top of its slice of D.
"""

from collections.abc import Sequence

import torch

from flexlora_server.aggregation.check_updates import check_updates
from flexlora_server.aggregation.factors import GlobalFactors, Update, weighted_stack
from flexlora_server.aggregation.truncate import Aggregate, truncate, without_truncation


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    """D_new = D_old + sum of p_i s_i B_i A_i, truncated to the largest rank served."""
    check_updates(updates, previous)
    if not any(bool(update.B.any()) for update in updates):  # not even the last bit moves
        return without_truncation(previous)
    # what is served stays frozen and does not come back, so A is kept exact here and rounded in slices alone
    stack = weighted_stack(updates).plus(previous.B, previous.A)
    return truncate(stack, previous, torch.float32, error_bound, begins_with_updates=True)
