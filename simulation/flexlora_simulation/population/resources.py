"""What participants afford: resources dealt out in their shares, and their ranks by module."""

import math
from collections.abc import Iterable, Sequence

from flexlora_shared.messages.runs import ModuleSpec
from flexlora_shared.ranks import by_pattern, unmatched_keys
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Resource


def shared_out(resources: Sequence[Resource], participants: int) -> list[int]:
    """The number in `resources` that each of so many participants has, in the order of the resources.

    Counts are exact; the rest goes by shares, to whole numbers by the largest remainders.

    Raises:
        ExperimentError: the counts do not fit the number of participants.
    """
    left = participants - sum(resource.count or 0 for resource in resources)
    shares = [0.0 if resource.count is not None else resource.share or 1.0 for resource in resources]
    total = sum(shares)  # 0 where all give counts
    if left < 0 or (left > 0 and total == 0):
        raise ExperimentError(
            f"resources: the counts add up to {participants - left}, but {participants} participants train; change a count, "
            "or give one of the resources a share instead"
        )
    exact = [left * share / total if total else 0.0 for share in shares]
    rounded = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: round(rounded[n] - exact[n], 9))  # of equal ones the first
    for n in by_remainder[: left - sum(rounded)]:
        rounded[n] += 1
    counts = [resource.count or 0 if resource.count is not None else rounded[n] for n, resource in enumerate(resources)]
    return [n for n, count in enumerate(counts) for _ in range(count)]


def ranks_of(resource: Resource) -> set[int]:
    """Every rank that somebody with this resource trains or holds some module at."""
    own = (resource.rank, resource.hold_rank, resource.attention_rank, *resource.rank_pattern.values())
    return {rank for rank in own if rank is not None}


def rank_pattern(resource: Resource, modules: Iterable[ModuleSpec]) -> dict[str, int]:
    """The ranks of modules that differ from `resource.rank`, with those of attention layers by their whole names.

    Raises:
        ExperimentError: a key names no module, or there is no attention layer to give its rank to.
    """
    names = [module.name for module in modules]
    if wrong := unmatched_keys(names, resource.rank_pattern):
        raise ExperimentError(
            f"resources: rank_pattern names {wrong[0]!r}, which is none of the run's modules nor the end of one, as "
            f"{names[0]} is"
        )
    if resource.attention_rank is None:
        return dict(resource.rank_pattern)
    attention = [
        name for name in names if any("attn" in part or "attention" in part for part in name.lower().split("."))
    ]
    if not attention:
        raise ExperimentError(
            "resources: the run's modules have no attention layers (part of whose name is attn or attention); leave "
            "attention_rank out, or give a distribution its ranks"
        )
    unnamed = [name for name in attention if by_pattern(name, None, resource.rank_pattern) is None]
    return {**dict.fromkeys(unnamed, resource.attention_rank), **resource.rank_pattern}
