"""Reads JSONL, CSV and Parquet files row by row; each row carries its place for error messages."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flexlora_client.errors import DataError


@dataclass(frozen=True)
class Row:
    """One row as read: where it stands (`data.csv, line 3`) and its fields by name."""

    place: str
    fields: Mapping[str, object]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a data file, by its ending.

    Raises:
        DataError: there is no such file, its ending is unknown, or its contents are not of the format the ending says.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: the ending must be one of {', '.join(readers)}; convert the file or rename it.")
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); give an existing, readable file."
        ) from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if not line.strip():
                    continue
                fields = json.loads(line)
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 text ({error.reason}); save the file as UTF-8.") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{place}: not JSON ({error}); write one JSON object a line.") from error
            if not isinstance(fields, dict):
                raise DataError(f"{place}: a JSON {type(fields).__name__}; write one JSON object a line.")
            yield Row(place, fields)


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{path}, after line {reader.line_num}: not CSV ({error}); check its quotes."
                ) from error
            except UnicodeDecodeError as error:
                place = f"{path}, after line {reader.line_num}"
                raise DataError(f"{place}: not UTF-8 text ({error.reason}); save the file as UTF-8.") from error
            if fields is None:
                return
            place = f"{path}, line {reader.line_num}"
            if None in fields or None in fields.values():
                columns = ",".join(reader.fieldnames or ())
                raise DataError(f"{place}: not one value for each column of {columns!r}; quote texts that hold commas.")
            yield Row(place, fields)


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", fields)
    except pa.ArrowException as error:
        raise DataError(f"{path}, after row {number}: not Parquet ({error}); write the file again.") from error
