"""What the strategies that serve one rank demand of updates."""

from collections.abc import Sequence

from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.errors import AggregationError


def check_full_rank(name: str, updates: Sequence[Update], previous: GlobalFactors) -> None:
    """Raise AggregationError unless every update has the global update's rank."""
    ranks, r_max = {update.rank for update in updates}, previous.A.shape[0]
    if ranks != {r_max}:
        raise AggregationError(f"{name} needs every update at rank {r_max}, not {sorted(ranks)}")
