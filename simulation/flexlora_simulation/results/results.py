"""What an experiment gave, for Python: its tables as pandas data frames."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import parquet

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The tables of an experiment that ended, read from its folder when they are asked for."""

    folder: Path

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """A row for each round: see `tables.RoundRow`."""
        return self._table("rounds")

    @cached_property
    def participants(self) -> "pd.DataFrame":
        """A row for each participant in each round: see `tables.ParticipantRow`."""
        return self._table("participants")

    @cached_property
    def evaluations(self) -> "pd.DataFrame":
        """A row for each figure: see `tables.EvaluationRow`."""
        return self._table("evaluations")

    def _table(self, name: str) -> "pd.DataFrame":
        return parquet.read_table(self.folder / f"{name}.parquet").to_pandas()
