"""What a participant says about the data: the files, and how they are to be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BadRows = Literal["refuse", "skip"]


@dataclass(frozen=True)
class DataOptions:
    """The data options of the command line."""

    data: tuple[Path, ...]  # files, patterns with * or folders; all are taken
    heldout: tuple[Path, ...] = ()  # likewise; where given, nothing of `data` is held out
    heldout_fraction: float = 0.1  # share of `data` to hold out, 0 to below 1
    columns: Mapping[str, str] = field(default_factory=dict)  # our name of a column: the file's
    labels: Mapping[str, str] = field(default_factory=dict)  # a label as the files have it: the run's
    encoding: str | None = None  # of text files; None: found out
    separator: str | None = None  # of CSV files, one character; None: found out
    bad_rows: BadRows = "refuse"
