"""A strategy of one's own: FlexLoRA that weighs everyone the same."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from flexlora_server.aggregation.factors import GlobalFactors, Update, weighted_stack
from flexlora_server.aggregation.truncate import Aggregate, truncate


def aggregate(
    updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
) -> Aggregate:
    equal = [replace(update, weight=1 / len(updates)) for update in updates]
    return truncate(weighted_stack(equal), previous, dtype, error_bound)
