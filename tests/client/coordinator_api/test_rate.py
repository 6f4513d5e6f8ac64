"""The bound on what slices and updates take of the line, on a clock of the test's own."""

from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.rate import NO_LIMIT, RateLimit
from tests.support.misbehaving import answer, misbehaving


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def limit(clock: Clock, rate: float) -> RateLimit:
    return RateLimit(rate, clock.sleep, clock)


def test_chunks_go_at_the_rate() -> None:
    clock = Clock()
    assert list(limit(clock, 100.0).chunks(iter([b"x" * 50] * 20))) == [b"x" * 50] * 20
    assert clock.now == 10.0


def test_a_pause_saves_up_half_a_second_at_most() -> None:
    clock = Clock()
    bound = limit(clock, 100.0)
    clock.now += 60.0
    list(bound.chunks(iter([b"x" * 50])))
    assert clock.now == 60.0
    list(bound.chunks(iter([b"x" * 50])))
    assert clock.now == 60.5


def test_uploads_and_downloads_are_bounded_and_messages_are_not() -> None:
    clock = Clock()
    with misbehaving(*[answer(200, b"d" * 300)] * 3) as server, Http(server.url, rate=limit(clock, 100.0)) as http:
        assert http.request("POST", "/", body=b"m" * 300).body == b"d" * 300
        assert clock.now == 0.0
        http.request("PATCH", "/", headers={"Content-Length": "200"}, body=iter([b"u" * 100] * 2))
        assert (clock.now, server.asked[1].body) == (2.0, b"u" * 200)
        with http.stream("/") as stream:
            assert b"".join(stream.chunks) == b"d" * 300
        assert clock.now == 5.0


def test_without_a_bound_nothing_waits() -> None:
    assert list(NO_LIMIT.chunks(iter([b"x"]))) == [b"x"]
    assert NO_LIMIT.slow(None) is None
