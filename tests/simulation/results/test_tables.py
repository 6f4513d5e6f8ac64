"""The rows of an experiment: appended, read again after a kill, and written as Parquet."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import parquet

from flexlora_simulation.errors import SimulationError
from flexlora_simulation.results.columns import DESCRIPTION, columns_of
from flexlora_simulation.results.results import Results
from flexlora_simulation.results.tables import (
    ROWS,
    TABLES,
    EnergyRow,
    EvaluationRow,
    ParticipantRow,
    RoundRow,
    Row,
    Tables,
    read_rows,
)

ROUND = RoundRow(1, 1, 7.5, 3, 2, "ab" * 32, 1.0, 0.5)
FIGURE = EvaluationRow(1, "test", "", 8, "accuracy", 0.25, 40)


def part(name: str, **fields: Any) -> ParticipantRow:
    return replace(ParticipantRow(1, 1, name, 8, 8, "accepted", 2.0, 10, 1.0, 4, 100, 200, 0.5), **fields)


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    opened = Tables(tmp_path)
    yield opened
    opened.close()


def reopened(folder: Path, *added: Row) -> list[Row]:
    tables = Tables(folder)
    for row in added:
        tables.add(row)
    tables.close()
    return list(read_rows(folder))


def test_rows_are_there_as_soon_as_they_are_added(tables: Tables, tmp_path: Path) -> None:
    rows: list[Row] = [part("a"), FIGURE, EnergyRow(1, "", 8, 0.75)]
    for row in rows:
        assert tables.add(row) == row
    assert list(read_rows(tmp_path)) == rows
    assert tables.has(EvaluationRow, 1, "test", "", 8, "accuracy")
    assert not tables.has(EvaluationRow, 2, "test", "", 8, "accuracy")


def test_a_row_that_was_cut_off_is_taken_away(tmp_path: Path) -> None:
    reopened(tmp_path, part("a"), part("b"))
    whole = (tmp_path / ROWS).read_bytes()
    for cut in (1, 2, 60):
        (tmp_path / ROWS).write_bytes(whole[:-cut])
        assert list(read_rows(tmp_path)) == [part("a")]  # while the program still writes
        assert reopened(tmp_path, part("b"), FIGURE) == [part("a"), part("b"), FIGURE]
    (tmp_path / ROWS).write_bytes(whole[:-1] + b"\0\0")
    assert reopened(tmp_path, FIGURE) == [part("a"), FIGURE]


def test_a_row_that_comes_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    reopened(tmp_path, part("a"), part("b"))
    tables = Tables(tmp_path)
    tables.add(part("a", cpu_seconds=9.0))
    tables.write()
    tables.close()
    assert Results(tmp_path).participants.cpu_seconds.tolist() == [9.0, 0.5]


def test_a_round_has_the_sums_of_its_participants(tables: Tables, tmp_path: Path) -> None:
    for one in (
        part("a", examples=30, train_loss=2.0),
        part("b"),
        part("vanished", outcome="vanished", examples=0, train_loss=None, bytes_up=0, cpu_seconds=0.0),
        part("a", attempt=0, train_loss=99.0),  # of an attempt that was abandoned
        part("elsewhere", round=2),
    ):
        tables.add(one)
    written = tables.add(ROUND)
    assert written == replace(ROUND, train_loss=1.75, bytes_up=300, bytes_down=800, cpu_seconds=1.5)
    tables.add(part("slow", outcome="late", train_loss=50.0))
    tables.write()
    [row] = Results(tmp_path).rounds.to_dict("records")
    assert row == asdict(replace(ROUND, train_loss=1.75, bytes_up=400, bytes_down=1000, cpu_seconds=2.0))


def test_a_round_without_updates_has_no_loss(tables: Tables) -> None:
    assert tables.add(ROUND) == ROUND


def test_damaged_rows_are_refused_with_their_place(tmp_path: Path) -> None:
    reopened(tmp_path, part("a"), part("b"))
    lines = (tmp_path / ROWS).read_bytes().splitlines(keepends=True)
    (tmp_path / ROWS).write_bytes(lines[0][:-9] + b"\n" + lines[1])
    with pytest.raises(SimulationError, match=r"rows\.jsonl, line 1 is damaged; restore the file"):
        Tables(tmp_path)
    for content in ({"table": "unknown"}, {"table": "rounds", "colour": "red"}):
        (tmp_path / ROWS).write_text(json.dumps(content) + "\n")
        with pytest.raises(SimulationError, match="of another version"):
            Tables(tmp_path)


def test_three_lines_of_pandas(tables: Tables, tmp_path: Path) -> None:
    for rank, value in ((8, 0.5), (1, 0.25)):
        tables.add(replace(FIGURE, rank=rank, value=value))
    tables.write()
    folder = tmp_path
    evaluations = pd.read_parquet(folder / "evaluations.parquet")
    accuracy = evaluations[(evaluations.metric == "accuracy") & (evaluations.on == "test")]
    assert accuracy.pivot(index="round", columns="rank", values="value").to_dict() == {1: {1: 0.25}, 8: {1: 0.5}}


def test_tables_have_types_and_meanings_without_rows(tables: Tables, tmp_path: Path) -> None:
    tables.write()
    for name, row in TABLES.items():
        schema = parquet.read_schema(tmp_path / f"{name}.parquet")
        assert [field.name for field in schema] == [column.name for column in columns_of(row)]
        assert {str(field.type) for field in schema} <= {"int64", "double", "string"}
        assert all(len(field.metadata[DESCRIPTION]) > 5 for field in schema)
    schema = parquet.read_schema(tmp_path / "participants.parquet")
    assert [field.name for field in schema if field.nullable] == ["virtual_seconds", "train_loss", "steps"]


def test_an_experiment_that_has_not_ended_has_no_tables(tables: Tables, tmp_path: Path) -> None:
    tables.add(part("a"))
    with pytest.raises(SimulationError, match="written at the end of the experiment"):
        _ = Results(tmp_path).rounds
