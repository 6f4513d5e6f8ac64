"""The tables of an experiment: what a row says, and where it is kept.

While the experiment runs, every row is a line of `rows.jsonl`, written as it happens; a row that is written again after a kill
takes the place of the first. At the end each table is a Parquet file. What a column holds is the second part of its annotation.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from flexlora_simulation.errors import SimulationError
from flexlora_simulation.results.columns import write_parquet
from flexlora_simulation.results.journal import Journal, read_journal

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class RoundRow:
    """One round as it was published."""

    table: ClassVar = "rounds"
    key: ClassVar = ("round",)
    round: Annotated[int, "number of the round; 0 is the adapter that the run began with"]
    attempt: Annotated[int, "attempt of the round that was published, from 1"]
    virtual_seconds: Annotated[float, "virtual seconds from the start of the run to the publication"]
    assigned: Annotated[int, "participants that were given the task"]
    accepted: Annotated[int, "updates that came in time"]
    adapter_sha256: Annotated[str, "SHA-256 of the global adapter's file"]
    wall_seconds: Annotated[float, "seconds since the simulation began, or was resumed"]
    aggregation_seconds: Annotated[float, "seconds that the aggregation took"]
    train_loss: Annotated[float | None, "mean training loss of the updates that came in time, weighted by examples"] = (
        None
    )
    bytes_up: Annotated[int, "bytes of the updates that its participants sent, late ones too"] = 0
    bytes_down: Annotated[int, "bytes of the slices that its participants received"] = 0
    cpu_seconds: Annotated[float, "CPU seconds that its participants trained"] = 0.0


@dataclass(frozen=True)
class ParticipantRow:
    """What became of one participant's part in one round."""

    table: ClassVar = "participants"
    key: ClassVar = ("round", "attempt", "participant")
    round: Annotated[int, "number of the round, from 1"]
    attempt: Annotated[int, "attempt of the round, from 1"]
    participant: Annotated[str, "its name"]
    rank: Annotated[int, "LoRA rank that it trained at"]
    hold_rank: Annotated[int, "LoRA rank that it held"]
    outcome: Annotated[
        Literal["accepted", "late", "discarded", "vanished", "failed"],
        "accepted; late: it counts in a later round; discarded; vanished: nothing came; failed: it said that it cannot",
    ]
    virtual_seconds: Annotated[float | None, "virtual seconds from its assignment to its update's arrival"]
    examples: Annotated[int, "training examples that it reported"]
    train_loss: Annotated[float | None, "mean training loss over its steps"]
    steps: Annotated[int | None, "optimizer steps"]
    bytes_up: Annotated[int, "bytes of its update"]
    bytes_down: Annotated[int, "bytes of the slice that it was served"]
    cpu_seconds: Annotated[float, "CPU seconds of its training"]
    reason: Annotated[str, "of a failure; empty otherwise"] = ""


@dataclass(frozen=True)
class EvaluationRow:
    """One figure of one slice of a published adapter."""

    table: ClassVar = "evaluations"
    key: ClassVar = ("round", "on", "participant", "rank", "metric")
    round: Annotated[int, "number of the round that published it; 0 is the adapter that the run began with"]
    on: Annotated[Literal["test", "unseen", "heldout"], "what it was measured on: test, unseen or heldout"]
    participant: Annotated[str, "whose held-out examples those of heldout are; empty for test and unseen"]
    rank: Annotated[int, "LoRA rank of the slice"]
    metric: Annotated[str, "name of the metric"]
    value: Annotated[float, "the figure"]
    examples: Annotated[int, "examples that it was measured on"]


@dataclass(frozen=True)
class EnergyRow:
    """What a slice of one rank keeps of the energy of a round's aggregate, its squared Frobenius norm."""

    table: ClassVar = "energy"
    key: ClassVar = ("round", "module", "rank")
    round: Annotated[int, "number of the round, from 1"]
    module: Annotated[str, "name of the module; empty for all of them together"]
    rank: Annotated[int, "LoRA rank of the slice"]
    share: Annotated[float, "share of the energy that the slice keeps, 0 to 1"]


Row = RoundRow | ParticipantRow | EvaluationRow | EnergyRow
TABLES: dict[str, type[Any]] = {row.table: row for row in (RoundRow, ParticipantRow, EvaluationRow, EnergyRow)}


class Tables:
    """The rows of one experiment in its folder, to be added to; `close` it at the end."""

    def __init__(self, folder: Path) -> None:
        """Raises: SimulationError, where rows of before are damaged."""
        self._folder = folder
        self._rows = {_key(row): row for row in read_rows(folder)}
        self._of_round = defaultdict[int, dict[tuple[Any, ...], ParticipantRow]](dict)
        for row in self._rows.values():
            self._index(row)
        self._journal = Journal(folder / ROWS)

    def add(self, row: Row) -> Row:
        """Write one row, and return it as it is written: a round's with the sums of what its participants did so far."""
        row = self._with_sums(row)
        self._rows[_key(row)] = row
        self._index(row)
        self._journal.append({"table": row.table, **asdict(row)})
        if isinstance(row, RoundRow):
            self._journal.sync()
        return row

    def has(self, row: type[Row], *key: Any) -> bool:
        """Whether there is a row of this key."""
        return (row.table, *key) in self._rows

    def write(self) -> None:
        """Write every table as Parquet, in the order of its key."""
        for name, row_class in TABLES.items():
            rows = sorted((row for key, row in self._rows.items() if key[0] == name), key=_key)
            write_parquet(self._folder / f"{name}.parquet", row_class, map(self._with_sums, rows))

    def close(self) -> None:
        """Nothing more is added."""
        self._journal.close()

    def _index(self, row: Row) -> None:
        if isinstance(row, ParticipantRow):
            self._of_round[row.round][_key(row)] = row

    def _with_sums(self, row: Row) -> Row:
        """A round's row with the sums over its participants, of all attempts; what comes late is in them at the end."""
        if not isinstance(row, RoundRow):
            return row
        own = self._of_round[row.round].values()
        return replace(
            row,
            train_loss=weighted_mean(
                [
                    (one.train_loss, one.examples)
                    for one in own
                    if (one.attempt, one.outcome) == (row.attempt, "accepted") and one.train_loss is not None
                ]
            ),
            bytes_up=sum(one.bytes_up for one in own),
            bytes_down=sum(one.bytes_down for one in own),
            cpu_seconds=sum(one.cpu_seconds for one in own),
        )


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows in a folder as they were written, those of an experiment that runs too; of one key the last one counts.

    Raises:
        SimulationError: they are damaged, or of another version.
    """
    for content in read_journal(folder / ROWS):
        try:
            yield TABLES[content.pop("table")](**content)
        except (KeyError, TypeError):
            raise SimulationError(f"{folder / ROWS} is of another version of FlexLoRA; read it with that one") from None


def _key(row: Row) -> tuple[Any, ...]:
    return (row.table, *(getattr(row, name) for name in row.key))


def weighted_mean(weighted: Sequence[tuple[float, int]]) -> float | None:
    """The mean of values with their weights; None where there is nothing."""
    total = sum(weight for _, weight in weighted)
    return math.fsum(value * weight for value, weight in weighted) / total if total else None
