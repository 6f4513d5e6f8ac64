"""Reads CSV and TSV; the separator is told, or found in the line of column names."""

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flexlora_client.errors import DataError
from flexlora_client.training.data.files.text_files import encoding_of, is_text, not_text, open_text
from flexlora_client.training.data.rows import ReadOptions, Row, choose_columns

SEPARATORS = ",;\t|"
NAMES = {"\t": "tab"}
TRIED_RECORDS = 20
LONGEST_VALUE = 1 << 26  # characters; a quote that is never closed makes a value of the rest of the file


def read_delimited(path: Path, options: ReadOptions) -> Iterator[Row]:
    """The rows of a CSV or TSV file (separated by tabs, where its name says .tsv); an empty value is None.

    Raises:
        DataError: it has no column of those asked for, or one twice.
    """
    csv.field_size_limit(LONGEST_VALUE)  # the library's own is 131072
    told = options.separator or ("\t" if ".tsv" in path.suffixes else None)
    encoding = encoding_of(path, options)
    separator = told or _find_separator(path, encoding, options.note)
    with open_text(path, encoding, newline="") as file:
        yield from _rows(path, csv.reader(file, delimiter=separator, strict=True), encoding, options)


if TYPE_CHECKING:
    from _csv import Reader  # the type has no public name


class _Faulty(list[str]):
    """A record that is no CSV."""


def _rows(path: Path, reader: "Reader", encoding: str, options: ReadOptions) -> Iterator[Row]:
    names = next((record for _, record in _records(reader)), None)
    if isinstance(names, _Faulty):
        raise DataError(f"{path}, line 1: not CSV ({names[0]}); check its quotes.")
    if names is None:
        return
    chosen = set(choose_columns(path, names, options))
    for number, record in _records(reader):
        place = f"{path}, line {number}"
        if isinstance(record, _Faulty):
            yield Row(place, {}, f"not CSV ({record[0]}); check its quotes.")
        elif not all(map(is_text, record)):
            yield Row(place, {}, not_text(encoding))
        elif len(record) != len(names):
            yield Row(place, {}, _uneven(names, record))
        else:
            yield Row(place, {name: value or None for name, value in zip(names, record, strict=True) if name in chosen})


def _records(reader: "Reader") -> Iterator[tuple[int, list[str]]]:
    """Every record that is no empty line, with the number of its first line."""
    while True:
        first = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            record = _Faulty([str(error)])
        if record is None:
            return
        if record:
            yield first, record


def _uneven(names: Sequence[str], record: Sequence[str]) -> str:
    counts = f"{len(record)} values for {len(names)} columns"
    return f"{counts}; put texts that hold the separator in quotes, or name another with --separator."


def _find_separator(path: Path, encoding: str, note: Callable[[str], None]) -> str:
    """The separator that cuts the line of names into columns; of several, the one under which more of the first records fit."""
    best, best_score = SEPARATORS[0], (0.0, 0)
    for separator in SEPARATORS:
        with open_text(path, encoding, newline="") as file:
            records = list(islice(_records(csv.reader(file, delimiter=separator, strict=True)), TRIED_RECORDS))
        widths = [len(record) for _, record in records] or [1]
        fitting = sum(width == widths[0] for width in widths) / len(widths)
        if widths[0] > 1 and (score := (fitting, widths[0])) > best_score:
            best, best_score = separator, score
    if best != SEPARATORS[0]:
        note(f"{path} is separated by {NAMES.get(best, best)}")
    return best
