"""One row as a reader yields it, and what a reader is told."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexlora_client.errors import DataError


class RowError(ValueError):
    """A row that is no example; a sentence without its place."""


class ClassName(str):
    """A class by the name that its file gives its number; never an index, even where it looks like one."""


def _no_note(sentence: str) -> None:
    """For callers that show no notes."""


@dataclass(frozen=True)
class Row:
    """One row: where it stands (`data.csv, line 3`) and its fields by name, or what is wrong with it as a sentence."""

    place: str
    content: Mapping[str, object]
    fault: str = ""

    @property
    def fields(self) -> Mapping[str, object]:
        """The fields by name. Raises: DataError, where the row cannot be read."""
        if self.fault:
            raise DataError(f"{self.place}: {self.fault}")
        return self.content


@dataclass(frozen=True)
class ReadOptions:
    """How files are read."""

    columns: frozenset[str] | None = None  # the only ones read of files that have columns; None: all
    expected: str = ""  # what is said to somebody whose file has none of these columns
    encoding: str | None = None  # of text files; None: found out
    separator: str | None = None  # of CSV files; None: found out
    classes: frozenset[str] = frozenset()  # columns of classes: files that name their numbers give these as ClassName
    note: Callable[[str], None] = _no_note  # told what was guessed


def choose_columns(path: Path, names: Sequence[str], options: ReadOptions) -> list[str]:
    """Those of a file's columns that are to be read, in its order.

    Raises:
        DataError: the file has none of them, or two of one name.
    """
    chosen = [name for name in names if options.columns is None or name in options.columns]
    twice = [name for name, count in Counter(chosen).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns named {twice[0]}; delete or rename one of them.")
    if not chosen and options.columns is not None:
        shown = ", ".join(repr(name[:80]) for name in names[:20]) or "none"
        raise DataError(
            f"{path}: its columns are {shown}; {options.expected}. Name yours with --column, as in --column text=body."
        )
    return chosen
