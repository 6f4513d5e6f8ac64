"""Which held-out examples an evaluation looks at where it cannot look at all: the same ones in every round.

Examples are taken in an order that their content decides, so that two evaluations of different length share the shorter one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class SampleSize:
    """Over how many examples figures are: of each kind the first ones in the order of their keys."""

    examples: int  # the loss and what is computed beside it
    choices: int = 0  # multiple choice
    answers: int = 0  # generated texts


class TimeLimit:
    """Seconds that an evaluation may take from now on; None: as many as it needs."""

    def __init__(self, seconds: float | None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def part(self, parts: int) -> Callable[[], bool]:
        """Whether the next of `parts` equal parts of what is left is over, asked again and again while it runs."""
        if self._end is None:
            return lambda: False
        now = self._clock()
        end = now + (self._end - now) / parts
        return lambda: self._clock() >= end
