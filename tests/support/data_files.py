"""Writes rows as each kind of data file, and reads all examples of one."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.loading import load_data
from flexlora_shared.messages.runs import ModelSpec

Rows = Sequence[dict[str, Any]]
Writer = Callable[[Path, Rows], Path]


def as_jsonl(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def as_json(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def as_gzip(path: Path, rows: Rows) -> Path:
    plain = as_jsonl(path, rows)
    packed = plain.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return packed


def as_csv(path: Path, rows: Rows, separator: str = ",", ending: str = ".csv") -> Path:
    path = path.with_suffix(ending)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_semicolons(path: Path, rows: Rows) -> Path:
    return as_csv(path, rows, ";")


def as_tsv(path: Path, rows: Rows) -> Path:
    return as_csv(path, rows, "\t", ".tsv")


def as_parquet(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def as_arrow(path: Path, rows: Rows) -> Path:
    """An Arrow IPC file."""
    return _arrow(path.with_suffix(".arrow"), rows, pa.ipc.new_file)


def as_stream(path: Path, rows: Rows) -> Path:
    """An Arrow IPC stream, as the library `datasets` writes."""
    return _arrow(path.with_suffix(".arrow"), rows, pa.ipc.new_stream)


def _arrow(path: Path, rows: Rows, opened: Callable[..., Any]) -> Path:
    table = pa.Table.from_pylist(list(rows))
    with path.open("wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


NESTED: list[Writer] = [as_jsonl, as_json, as_gzip, as_parquet, as_arrow, as_stream]
FLAT: list[Writer] = [*NESTED, as_csv, as_semicolons, as_tsv]


def load(path: Path, model: ModelSpec) -> tuple[Example, ...]:
    """Every example of a file or folder, in its order."""
    return tuple(load_data(DataOptions((path,), heldout_fraction=0.0), model).train)
