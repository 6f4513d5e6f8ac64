"""A bound on the bytes a second that slices and updates take of the line, each way."""

import time
from collections.abc import Callable, Iterator

from flexlora_client.coordinator_api.http_messages import Body

BURST_S = 0.5  # seconds' worth of bytes that may go at once


class RateLimit:
    """A token bucket: bytes go as they come until `BURST_S` of them are spent, then at the rate."""

    def __init__(
        self,
        bytes_per_second: float | None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """bytes_per_second: None for no bound."""
        self._rate, self._sleep, self._clock = bytes_per_second, sleep, clock
        self._free_at = clock()  # when everything so far has gone at the rate

    def slow(self, body: Body | None) -> Body | None:
        """The body to send, at the rate where it is made of chunks; whole ones are small."""
        return body if body is None or isinstance(body, bytes) else self.chunks(body)

    def chunks(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, each after the wait it costs."""
        for chunk in chunks:
            self._wait(len(chunk))
            yield chunk

    def _wait(self, size: int) -> None:
        if self._rate is None:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now - BURST_S) + size / self._rate
        if self._free_at > now:
            self._sleep(self._free_at - now)


NO_LIMIT = RateLimit(None)
