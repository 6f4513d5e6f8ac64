"""Says at once what an agent without work waits for, and again when that changes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flexlora_client.agent.reporter import Reporter
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.retry import Backoff, RetryPolicy
from flexlora_client.errors import ClientError

OVER = ("COMPLETED", "CANCELLED", "FAILED")
ASK_EVERY_S = 45.0  # thousands of agents may wait at a time


@dataclass
class Waiting:
    """One agent's wait for work in a run."""

    api: Api
    run: str
    reporter: Reporter
    clock: Callable[[], float] = time.monotonic
    _asked: float | None = field(default=None, init=False)  # None: the wait has not begun
    _told: str = field(default="", init=False)

    @property
    def begun(self) -> bool:
        """Whether the wait was told."""
        return self._asked is not None

    def go_on(self) -> None:
        """There is no work: ask what the run waits for, not too often, and report it where that is news."""
        now = self.clock()
        if self._asked is not None and now - self._asked < ASK_EVERY_S:
            return
        first, self._asked = self._asked is None, now
        reason = self._ask()
        if reason and (first or reason != self._told):
            self._told = reason
            self.reporter.step("waiting", f"waiting: {reason}", waiting_for=reason)

    def end(self) -> None:
        """There is work."""
        self._asked = None

    def _ask(self) -> str:
        """The coordinator's sentence, empty of a run that is over; a general one where it does not answer."""
        try:
            once = Api(self.api.http, RetryPolicy(Backoff(attempts=1)))
            status = once.run(self.run).status
            return "" if status.state in OVER else status.waiting_for  # the next poll ends the agent
        except ClientError:
            return "for work"
