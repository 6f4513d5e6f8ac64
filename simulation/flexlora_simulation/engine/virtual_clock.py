"""The federation's time."""

from datetime import UTC, datetime

START = datetime(2020, 1, 1, tzinfo=UTC)  # of every run, so that equal experiments have equal tables


class VirtualClock:
    """It jumps from event to event and never goes back."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now.timestamp()

    def advance_to(self, instant: datetime) -> None:
        """Jump, unless it is later already."""
        self.now = max(self.now, instant)
