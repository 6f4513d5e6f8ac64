"""Which held-out examples an evaluation looks at where it cannot look at all: the same ones in every round.

Examples are taken in an order that their content decides, so that two evaluations of different length share the shorter one.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexlora_client.training.data.examples import Example

Clock = Callable[[], float]


@dataclass(frozen=True)
class SampleSize:
    """Over how many examples figures are: of each kind the first ones in the order of `in_sample_order`."""

    examples: int  # the loss and what is computed beside it
    choices: int = 0  # multiple choice
    answers: int = 0  # generated texts


def in_sample_order(examples: Sequence[Example]) -> list[Example]:
    """The examples, ordered by a digest of their content."""
    return sorted(examples, key=_digest)


def _digest(example: Example) -> bytes:
    return hashlib.sha256(f"evaluation\0{example!r}".encode("utf-8", "surrogatepass")).digest()


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
