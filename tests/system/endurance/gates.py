"""Gates that hold a participant's training back, one a round: each is a file that stays locked until its gate opens.

The kernel wakes whoever waits for the lock, and frees the locks of a process that is killed.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER = "ENDURANCE_GATES"  # variable that names the folder of the gates; without it there are none


@dataclass(frozen=True)
class Gates:
    """The gates of a run, for whoever opens them."""

    folder: Path
    _closed: dict[int, ExitStack]

    def open(self, number: int) -> None:
        """Let a round's training end, now and whenever it is done again."""
        self._closed.pop(number, ExitStack()).close()


@contextmanager
def gates(folder: Path, count: int) -> Iterator[Gates]:
    """Closed gates of rounds 1 to `count`, all open on leaving."""
    folder.mkdir()
    with ExitStack() as every:
        yield Gates(
            folder, {number: every.enter_context(_locked(folder / str(number))) for number in range(1, count + 1)}
        )


@contextmanager
def _locked(path: Path) -> Iterator[ExitStack]:
    with ExitStack() as lock:
        fcntl.flock(lock.enter_context(path.open("xb")), fcntl.LOCK_EX)
        yield lock


def wait_at_gate(number: int) -> None:
    """Return when a round's gate is open, or at once where there are no gates."""
    if folder := os.environ.get(FOLDER):
        with (Path(folder) / str(number)).open("rb") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
