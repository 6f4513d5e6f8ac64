"""Retries with exponential back-off and full jitter; honours `Retry-After`.

Full jitter (a uniform draw between 0 and the ceiling) keeps thousands of agents from returning at the same moment after
a coordinator's restart; see Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flexlora_client.errors import ClientError

T = TypeVar("T")
MAX_RETRY_AFTER_S = 3600.0  # so that a wrong header cannot silence an agent for ever


@dataclass(frozen=True)
class Backoff:
    """Ceilings of the waits, in seconds: `base`, doubled each time up to `cap`; `attempts` None tries for ever."""

    base: float = 0.5
    cap: float = 60.0
    attempts: int | None = None

    def ceiling(self, failures: int) -> float:
        """Longest wait after this many failures in a row (1 or more)."""
        return min(self.cap, self.base * 2.0 ** min(failures - 1, 60))


AGENT_BACKOFF = Backoff()  # an agent survives a coordinator that is down for hours
COMMAND_BACKOFF = Backoff(base=0.4, attempts=4)  # somebody waits for a command


def _ignore(error: ClientError, delay: float) -> None:
    """Default of `on_wait`: do nothing."""


@dataclass(frozen=True)
class RetryPolicy:
    """How calls are retried. `sleep` and `uniform` are arguments so that tests neither wait nor depend on chance."""

    backoff: Backoff = COMMAND_BACKOFF
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    on_wait: Callable[[ClientError, float], None] = _ignore

    def call(self, operation: Callable[[], T]) -> T:
        """The operation's result; it must be safe to repeat.

        Raises: the operation's own error, once it is not transient or the attempts are used up.
        """
        attempts = self.start()
        while True:
            try:
                return operation()
            except ClientError as error:
                attempts.failed(error)

    def start(self) -> "Attempts":
        """A fresh count of failures, for an operation that makes progress between them."""
        return Attempts(self)


class Attempts:
    """Counts failures in a row of one operation and waits between them."""

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._failures = 0

    def failed(self, error: ClientError, *, recoverable: bool = False) -> None:
        """Wait before the next attempt, or raise `error` when there is to be none.

        `recoverable` says that the caller knows how to go on although the same call would fail again.
        """
        self._failures += 1
        backoff = self._retry.backoff
        spent = backoff.attempts is not None and self._failures >= backoff.attempts
        if spent or not (error.transient or recoverable):
            raise error
        retry_after = min(error.retry_after or 0.0, MAX_RETRY_AFTER_S)
        delay = retry_after + self._retry.uniform(0.0, backoff.ceiling(self._failures))
        self._retry.on_wait(error, delay)
        self._retry.sleep(delay)

    def progressed(self) -> None:
        """Reset the count of failures, because something got through."""
        self._failures = 0
