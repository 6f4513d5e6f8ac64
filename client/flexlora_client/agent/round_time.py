"""When a round's training must end, so that what comes after it is done before the round's deadline."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

UNMEASURED_BYTES_PER_S = 250_000  # an upload of 2 Mbit/s, until one was measured
UPLOAD_VARIES = 1.5  # an upload may take so many times what the last one took
MARGIN_S = 5.0


@dataclass
class RoundTime:
    """What evaluation and upload took the last time, in seconds."""

    evaluation: float = 0.0
    upload: float | None = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Measure an evaluation."""
        began = time.monotonic()
        yield
        self.evaluation = time.monotonic() - began

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Measure an upload."""
        began = time.monotonic()
        yield
        self.upload = time.monotonic() - began

    def training_deadline(self, deadline: str, clock_ahead: float, size: int) -> float:
        """The `time.time()` at which training must end: at least half of the time that is left is for training.

        `deadline` is the round's, RFC 3339, by a clock that is `clock_ahead` seconds ahead of this machine's; `size` are the
        bytes to upload.
        """
        now = time.time()
        left = datetime.fromisoformat(deadline).timestamp() - clock_ahead - now
        return now + self.training_seconds(left, size)

    def training_seconds(self, left: float, size: int) -> float:
        """How much of `left`, the seconds until the round's deadline, is for training; `size` are the bytes to upload."""
        upload = size / UNMEASURED_BYTES_PER_S if self.upload is None else UPLOAD_VARIES * self.upload
        return max(left / 2, left - self.evaluation - upload - MARGIN_S)
