"""Reads Parquet, and Arrow's IPC files and streams, a batch at a time and only the columns asked for."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flexlora_client.errors import DataError
from flexlora_client.training.data.rows import ClassName, ReadOptions, Row, choose_columns

ROWS_AT_ONCE = 256  # as Python objects; a row may hold an image
FILE_MAGIC = b"ARROW1"


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Row]:
    """The rows of a Parquet file. Raises: DataError."""
    with _translated(path, "Parquet"), pq.ParquetFile(path, pre_buffer=False) as file:
        schema = file.schema_arrow
        chosen = choose_columns(path, schema.names, options)
        batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=chosen)
        yield from _rows(path, batches, _named_classes(schema, options))


def read_arrow(path: Path, options: ReadOptions) -> Iterator[Row]:
    """The rows of an Arrow IPC file or stream. Raises: DataError."""
    with _translated(path, "Arrow"), path.open("rb") as start, pa.OSFile(str(path)) as file:
        is_file = start.read(len(FILE_MAGIC)) == FILE_MAGIC
        opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
        schema = opened(file).schema
        chosen = choose_columns(path, schema.names, options)
        file.seek(0)
        wanted = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in chosen])
        with opened(file, options=wanted) as reader:
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            yield from _rows(path, batches, _named_classes(schema, options))


@contextmanager
def _translated(path: Path, kind: str) -> Iterator[None]:
    """Turn errors of the library into a DataError that names the file and its kind."""
    try:
        yield
    except (pa.ArrowException, EOFError, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is no {kind} file, or a damaged one ({reason}); write it again.") from error


def _rows(path: Path, batches: Iterator[Any], named: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for fields in _as_dicts(path, batch.slice(start, ROWS_AT_ONCE), number):
                number += 1
                for name, names in named.items():
                    fields[name] = _name(fields.get(name), names)
                yield Row(f"{path}, row {number}", fields)


def _as_dicts(path: Path, batch: Any, before: int) -> list[dict[str, Any]]:
    try:
        return [{name: _pruned(value) for name, value in row.items()} for row in batch.to_pylist()]
    except (ValueError, OverflowError) as error:
        place = f"{path}, rows {before + 1} to {before + batch.num_rows}"
        raise DataError(f"{place}: a value has no form in Python ({error}); convert its column to text.") from error


def _pruned(value: Any) -> Any:
    """The value without the empty fields of its structures: a column of them holds the fields of all its rows."""
    if isinstance(value, dict):
        return {name: _pruned(part) for name, part in value.items() if part is not None}
    return [_pruned(part) for part in value] if isinstance(value, list) else value


def _named_classes(schema: Any, options: ReadOptions) -> dict[str, tuple[str, ...]]:
    """The class names of the columns of classes whose numbers have some, as the library `datasets` writes them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {name: tuple(_inner(feature)["names"]) for name, feature in features.items() if _inner(feature)}
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: names for name, names in classes.items() if name in options.classes}


def _inner(feature: Any) -> dict[str, Any]:
    """The ClassLabel that the feature, or a list of them, is; empty where it is another."""
    while isinstance(feature, list) or (isinstance(feature, dict) and isinstance(feature.get("feature"), dict)):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return feature if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else {}


def _name(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_name(part, names) for part in value]
    return ClassName(names[value]) if isinstance(value, int) and 0 <= value < len(names) else None
