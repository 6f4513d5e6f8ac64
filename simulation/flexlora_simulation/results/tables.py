"""The tables of an experiment: what a row says, and where it is kept.

While the experiment runs, every row is a line of `rows.jsonl`, written as it happens; a row that is written again after a kill
takes the place of the first. At the end each table is a Parquet file.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pyarrow import parquet

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class RoundRow:
    """One round as it was published. Seconds are virtual, but for `aggregation_seconds`."""

    table: ClassVar = "rounds"
    key: ClassVar = ("round",)
    round: int
    attempt: int
    virtual_seconds: float  # since the start of the run
    assigned: int
    accepted: int
    adapter_sha256: str
    wall_seconds: float  # since the simulation began or was resumed
    aggregation_seconds: float


@dataclass(frozen=True)
class ParticipantRow:
    """What became of one participant's part in one round."""

    table: ClassVar = "participants"
    key: ClassVar = ("round", "attempt", "participant")
    round: int
    attempt: int
    participant: str
    rank: int
    hold_rank: int
    outcome: Literal["accepted", "late", "discarded", "vanished", "failed"]
    virtual_seconds: float | None  # from its assignment to its update's arrival; None: it never came
    examples: int
    train_loss: float | None
    steps: int | None
    bytes_up: int
    bytes_down: int
    cpu_seconds: float
    reason: str = ""  # of a failure


@dataclass(frozen=True)
class EvaluationRow:
    """One figure of one slice. `participant`: whose held-out examples it is on; empty for `test` and `unseen`."""

    table: ClassVar = "evaluations"
    key: ClassVar = ("round", "on", "participant", "rank", "metric")
    round: int
    on: Literal["test", "unseen", "heldout"]
    participant: str
    rank: int
    metric: str
    value: float
    examples: int


Row = RoundRow | ParticipantRow | EvaluationRow
TABLES: dict[str, type[Any]] = {row.table: row for row in (RoundRow, ParticipantRow, EvaluationRow)}


class Tables:
    """The rows of one experiment in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / ROWS
        self._rows: dict[tuple[Any, ...], Row] = {}
        for row in _read(self._path):
            self._rows[_key(row)] = row

    def add(self, row: Row) -> None:
        """Write one row."""
        self._rows[_key(row)] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": row.table, **asdict(row)}) + "\n")

    def has(self, row: type[Row], *key: Any) -> bool:
        """Whether there is a row of this key."""
        return (row.table, *key) in self._rows

    def write(self) -> None:
        """Write every table as Parquet, in the order of its key."""
        for name, row_class in TABLES.items():
            rows = sorted((row for key, row in self._rows.items() if key[0] == name), key=_key)
            columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(row_class)}
            parquet.write_table(pa.table(columns), self._folder / f"{name}.parquet")


def _read(path: Path) -> Iterator[Row]:
    """The rows of the file; a last line that was cut off is none."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        yield TABLES[content.pop("table")](**content)


def _key(row: Row) -> tuple[Any, ...]:
    return (row.table, *(getattr(row, name) for name in row.key))
