"""What the strategies demand that can serve one rank only."""

from collections.abc import Sequence

from flexlora_server.aggregation.errors import AggregationError, UnsupportedRun
from flexlora_server.aggregation.factors import GlobalFactors, Update


def check_one_rank(name: str, ranks: Sequence[int]) -> None:
    """Raise UnsupportedRun unless a run allows exactly one rank."""
    if len(set(ranks)) != 1:
        raise UnsupportedRun(
            f"{name} averages the factors and needs one rank for all, not {sorted(set(ranks))}: "
            "allow a single rank, or choose flexlora"
        )


def check_full_rank(name: str, updates: Sequence[Update], previous: GlobalFactors) -> None:
    """Raise AggregationError unless every update has the global update's rank."""
    ranks, r_max = {update.rank for update in updates}, previous.A.shape[0]
    if ranks != {r_max}:
        raise AggregationError(f"{name} needs every update at rank {r_max}, not {sorted(ranks)}")
