"""What an agent leaves in its work folder for people: its lines in a log, and where it stands.

Neither may end the agent: on a full disk, lines are lost.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flexlora_client.errors import BadInput
from flexlora_client.files import write_whole
from flexlora_shared.messages.base import Message

LOG_FILE, PLACE_FILE = "agent.log", "place.json"
LOG_BYTES, OLD_LOGS = 1_000_000, 3


class Place(Message):
    """Where a participant stands in a run, by its agent's last words."""

    run: str
    rank: int | None = None
    hold_rank: int | None = None  # of the slice that it holds
    round: int | None = None  # the last one that it was given work in
    rounds: int | None = None
    accepted: int | None = None  # the round of its last accepted update
    accepted_at: str | None = None  # RFC 3339, UTC
    last: str = ""  # the last event, see docs/events.md
    last_at: str = ""


class Diary:
    """Keeps log and place of one run; opened by the agent that holds the folder's lock."""

    def __init__(self, folder: Path, run: str) -> None:
        self._handler = _Quiet(
            folder / LOG_FILE, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8", delay=True
        )
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._path = folder / PLACE_FILE
        self._place = read_place(self._path) or Place(run=run)

    def line(self, sentence: str) -> None:
        """Write a line with its time to the log."""
        self._handler.handle(logging.LogRecord("agent", logging.INFO, "", 0, sentence, None, None))

    def event(self, kind: str, at: str, fields: Mapping[str, Any]) -> None:
        """Note an event of the agent."""
        known = {
            name: fields[name]
            for name in ("rank", "hold_rank", "round", "rounds")
            if kind in ("declared", "task") and name in fields
        }
        if kind in ("accepted", "late"):
            known = {"accepted": fields["round"], "accepted_at": at}
        self._place = self._place.model_copy(update={**known, "last": kind, "last_at": at})
        with suppress(BadInput):
            write_whole(self._path, self._place.model_dump_json().encode())

    def close(self) -> None:
        """Close the log."""
        self._handler.close()


class _Quiet(RotatingFileHandler):
    """Loses lines that cannot be written, instead of writing a traceback to stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing."""


def read_place(path: Path) -> Place | None:
    """The place in a file; None where there is none or it is of another version."""
    try:
        return Place.model_validate_json(path.read_bytes(), extra="ignore")
    except (OSError, ValidationError):
        return None


def places(home: Path) -> list[Place]:
    """Where the participant of this home stands in each run it took part in, by name of the run."""
    found = [read_place(path) for path in sorted(home.glob(f"runs/*/{PLACE_FILE}"))]
    return [place for place in found if place is not None]
