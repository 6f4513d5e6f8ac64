"""An experiment at a glance, from its rows, also while it runs: round by round, and by what participants afford."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flexlora_simulation.results.tables import EvaluationRow, ParticipantRow, RoundRow, Row, weighted_mean

R = TypeVar("R", ParticipantRow, EvaluationRow)


@dataclass(frozen=True)
class RankGroup:
    """All participants that trained at one rank and held one rank, over all rounds.

    train_loss: of the last round in which an update of theirs came in time. heldout: the metric on their held-out examples in
    the last round in which it was measured. Both are weighted by examples, and None where there is nothing.
    """

    rank: int
    hold_rank: int
    participants: int
    outcomes: Counter[str]
    bytes_up: int
    bytes_down: int
    cpu_seconds: float
    train_loss: float | None
    heldout: float | None


@dataclass(frozen=True)
class Overview:
    """rounds: in their order. figures: the metric by round, what it is on, and rank; not on held-out examples."""

    rounds: tuple[RoundRow, ...]
    figures: dict[tuple[int, str, int], float]
    groups: tuple[RankGroup, ...]


def overview_of(rows: Iterable[Row], metric: str) -> Overview:
    """The overview of one metric."""
    kept = {(row.table, *(getattr(row, name) for name in row.key)): row for row in rows}.values()  # the last of each
    rounds = sorted((row for row in kept if isinstance(row, RoundRow)), key=lambda row: row.round)
    measured = [row for row in kept if isinstance(row, EvaluationRow) and row.metric == metric]
    groups = defaultdict[tuple[int, int], list[ParticipantRow]](list)
    for row in kept:
        if isinstance(row, ParticipantRow):
            groups[row.rank, row.hold_rank].append(row)
    return Overview(
        tuple(rounds),
        {(row.round, row.on, row.rank): row.value for row in measured if row.on != "heldout"},
        tuple(_group(groups[key], measured) for key in sorted(groups)),
    )


def metrics_in(rows: Iterable[Row]) -> tuple[str, ...]:
    """The names of all metrics, in alphabetical order."""
    return tuple(sorted({row.metric for row in rows if isinstance(row, EvaluationRow)}))


def _group(own: Sequence[ParticipantRow], measured: Sequence[EvaluationRow]) -> RankGroup:
    names = {row.participant for row in own}
    heldout = [row for row in measured if row.participant in names]
    accepted = [row for row in own if row.outcome == "accepted" and row.train_loss is not None]
    return RankGroup(
        own[0].rank,
        own[0].hold_rank,
        len(names),
        Counter(row.outcome for row in own),
        sum(row.bytes_up for row in own),
        sum(row.bytes_down for row in own),
        math.fsum(row.cpu_seconds for row in own),
        weighted_mean([(row.train_loss or 0.0, row.examples) for row in _last_round(accepted)]),
        weighted_mean([(row.value, row.examples) for row in _last_round(heldout)]),
    )


def _last_round(rows: Sequence[R]) -> list[R]:
    last = max((row.round for row in rows), default=None)
    return [row for row in rows if row.round == last]
