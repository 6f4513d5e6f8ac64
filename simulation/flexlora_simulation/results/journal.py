"""A file of JSON lines that is appended to, and survives being killed."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flexlora_simulation.errors import SimulationError


class Journal:
    """The file, open for appending. A last line that was cut off is taken away first.

    Every line is handed to the system as it is written, so a killed process loses none; `sync` guards against a power cut.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+")
        self._file.truncate(_end_of_whole_lines(path))

    def append(self, content: Mapping[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the file, which may be appended to meanwhile: a last line without its end is not there yet.

    Raises:
        SimulationError: a line is damaged.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise SimulationError(
                    f"{path}, line {number} is damaged; restore the file, or run the experiment anew in another folder"
                ) from None


def _end_of_whole_lines(path: Path) -> int:
    """Bytes up to the end of the last line that has one."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1
