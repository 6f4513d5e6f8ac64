"""What an experiment gave, for Python: its tables as pandas data frames."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import parquet

from flexlora_simulation.errors import SimulationError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The tables of an experiment that ended, read from its folder when they are asked for.

    Raises: SimulationError, where it has not ended.
    """

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

    @cached_property
    def energy(self) -> "pd.DataFrame":
        """A row for each rank and module in each round: see `tables.EnergyRow`."""
        return self._table("energy")

    def _table(self, name: str) -> "pd.DataFrame":
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            raise SimulationError(f"{path} is missing: the tables are written at the end of the experiment")
        return parquet.read_table(path).to_pandas()
