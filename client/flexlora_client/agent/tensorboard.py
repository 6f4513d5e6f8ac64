"""A participant's own metrics in TensorBoard's files, round by round; nothing of it leaves the machine."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flexlora_client.errors import BadInput

GROUPS = {"trained": "training", "evaluated": "evaluation"}  # events that carry metrics


def load_writer() -> Callable[[str], Any]:
    """The class of TensorBoard's files. Raises: BadInput, where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra
    except ImportError as error:
        raise BadInput(
            f"--tensorboard needs {error.name}, which this installation lacks: pip install 'flexlora[tensorboard]'"
        ) from None
    return SummaryWriter


class TensorBoard:
    """Writes the metrics of a run's events below `folder`, in a folder of the run's name."""

    def __init__(self, folder: Path, run: str) -> None:
        """Raises: BadInput, where TensorBoard is not installed or the folder cannot be written."""
        writer = load_writer()
        try:
            self._writer = writer(str(folder / run))
        except OSError as error:
            raise BadInput(f"cannot write {folder}: {error.strerror}; give another folder to --tensorboard") from None

    def event(self, kind: str, at: str, fields: Mapping[str, Any]) -> None:
        """Write an event's metrics, at its round."""
        if kind in GROUPS:
            for name, value in fields["metrics"].items():
                self._writer.add_scalar(f"{GROUPS[kind]}/{name}", value, fields["round"])
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
