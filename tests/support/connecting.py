"""An agent's connection that records its waits instead of sleeping."""

from dataclasses import dataclass, field

from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import Backoff, RetryPolicy
from flexlora_client.errors import ClientError


@dataclass
class Waits:
    """The waits asked for, in seconds, and why."""

    slept: list[float] = field(default_factory=list)
    reasons: list[ClientError] = field(default_factory=list)

    def retry(self, backoff: Backoff) -> RetryPolicy:
        """Retries at the longest waits that the jitter may draw."""
        return RetryPolicy(
            backoff,
            sleep=self.slept.append,
            uniform=lambda low, high: high,
            on_wait=lambda error, delay: self.reasons.append(error),
        )


def connect(url: str, waits: Waits, attempts: int | None = 5, key: str = "a-key") -> Api:
    """The calls of a coordinator; no wait takes time."""
    return Api(Http(url, key), waits.retry(Backoff(base=1.0, cap=8.0, attempts=attempts)))
