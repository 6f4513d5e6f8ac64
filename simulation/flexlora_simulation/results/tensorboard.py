"""TensorBoard's view of an experiment: every round's figures, and those of each slice, by round."""

from pathlib import Path
from typing import Any

from flexlora_simulation.results.tables import EnergyRow, EvaluationRow, RoundRow, Row, read_rows

FOLDER = "tensorboard"  # of its files, in the experiment's
OF_A_ROUND = ("train_loss", "accepted", "virtual_seconds", "bytes_up", "bytes_down", "cpu_seconds")


class TensorBoard:
    """Is told the rows. Its files are made anew from all rows at the first one, also of those before an interruption."""

    def __init__(self, folder: Path) -> None:
        """folder: the experiment's."""
        self._folder = folder
        self._writer: Any = None  # its class is that of a heavy import, of the extra `tensorboard`

    def __call__(self, row: Row) -> None:
        """Write the figures of a row that was just recorded."""
        if self._writer is None:
            self.open()  # the row is among the recorded ones
        else:
            self._write(row)
            self._writer.flush()

    def open(self) -> None:
        """Write the figures of all rows so far."""
        if self._writer is not None:
            return
        from torch.utils.tensorboard import SummaryWriter

        for old in (self._folder / FOLDER).glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(self._folder / FOLDER)
        for row in read_rows(self._folder):
            self._write(row)
        self._writer.flush()

    def close(self) -> None:
        """There are no more rows."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, row: Row) -> None:
        for name, value in _scalars(row).items():
            self._writer.add_scalar(name, value, row.round)


def _scalars(row: Row) -> dict[str, float]:
    """Tags and values; of held-out examples there are none, as there may be thousands of participants."""
    if isinstance(row, RoundRow):
        values = {f"round/{name}": getattr(row, name) for name in OF_A_ROUND}
        return {name: value for name, value in values.items() if value is not None}
    if isinstance(row, EvaluationRow) and row.on != "heldout":
        return {f"{row.on}/{row.metric} at rank {row.rank}": row.value}
    if isinstance(row, EnergyRow) and not row.module:
        return {f"energy/kept at rank {row.rank}": row.share}
    return {}
