"""What the columns of a table hold: read from its row's dataclass, written into its Parquet file."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
from pyarrow import parquet

from flexlora_client.files import write_whole

DESCRIPTION = b"description"  # of a column, in the metadata of its Arrow field
_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True)
class Column:
    """One column: a field of the row, annotated with its meaning and its unit."""

    name: str
    type: type[int | float | str]
    optional: bool
    meaning: str


def columns_of(row: type[Any]) -> tuple[Column, ...]:
    """The columns of a table, in the order of the row's fields."""
    hints = get_type_hints(row, include_extras=True)
    return tuple(_column(field.name, *get_args(hints[field.name])) for field in fields(row))


def write_parquet(path: Path, row: type[Any], rows: Iterable[Any]) -> None:
    """Write the rows as a Parquet file, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    columns, listed = columns_of(row), list(rows)
    values = [[getattr(one, column.name) for one in listed] for column in columns]
    content = BytesIO()
    parquet.write_table(pa.table(values, schema=pa.schema([_arrow(column) for column in columns])), content)
    write_whole(path, content.getvalue())


def _column(name: str, type_: Any, meaning: str) -> Column:
    optional = get_origin(type_) is UnionType
    if optional:
        type_ = next(one for one in get_args(type_) if one is not NoneType)
    return Column(name, str if get_origin(type_) is Literal else type_, optional, meaning)


def _arrow(column: Column) -> pa.Field:
    return pa.field(column.name, _ARROW[column.type], column.optional, {DESCRIPTION: column.meaning})
