"""The schedule of trying again."""

import pytest

from flexlora_client.coordinator_api.retry import (
    AGENT_BACKOFF,
    COMMAND_BACKOFF,
    MAX_RETRY_AFTER_S,
    Backoff,
    RetryPolicy,
)
from flexlora_client.errors import Refused, Unreachable
from flexlora_shared.problems import Code, Problem
from tests.support.connecting import Waits


class Failing:
    """An operation that fails a number of times before it succeeds."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


def test_waits_double_up_to_the_cap() -> None:
    waits = Waits()
    operation = Failing(6, Unreachable("away"))
    assert waits.retry(Backoff(base=1.0, cap=8.0)).call(operation) == "done"
    assert waits.slept == [1, 2, 4, 8, 8, 8]
    assert operation.calls == 7
    assert [str(error) for error in waits.reasons] == ["away"] * 6


def test_full_jitter_draws_from_zero_to_the_ceiling() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    slept: list[float] = []
    retry = RetryPolicy(Backoff(base=2.0, cap=100.0), sleep=slept.append, uniform=uniform)
    assert retry.call(Failing(3, Unreachable("away"))) == "done"
    assert drawn == [(0, 2), (0, 4), (0, 8)]
    assert slept == [0, 0, 0]


def test_an_agent_outlives_days_without_a_coordinator() -> None:
    waits = Waits()
    assert waits.retry(AGENT_BACKOFF).call(Failing(5000, Unreachable("away"))) == "done"
    assert max(waits.slept) == AGENT_BACKOFF.cap
    assert sum(waits.slept) > 2 * 24 * 3600


def test_a_command_gives_up_with_the_last_reason() -> None:
    waits = Waits()
    operation = Failing(99, Unreachable("away"))
    with pytest.raises(Unreachable, match="away"):
        waits.retry(COMMAND_BACKOFF).call(operation)
    assert operation.calls == COMMAND_BACKOFF.attempts
    assert len(waits.slept) == operation.calls - 1


def test_what_the_other_side_asks_for_is_waited_on_top() -> None:
    waits = Waits()
    busy = Refused(Problem.of(Code.UNAVAILABLE, "Busy."), retry_after=30)
    assert waits.retry(Backoff(base=1.0)).call(Failing(2, busy)) == "done"
    assert waits.slept == [31, 32]


def test_an_absurd_retry_after_does_not_silence_the_agent() -> None:
    waits = Waits()
    waits.retry(Backoff(base=1.0)).call(Failing(1, Unreachable("away", retry_after=1e9)))
    assert waits.slept == [MAX_RETRY_AFTER_S + 1]


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.STORAGE_FULL, Code.TOO_SLOW, Code.INTERNAL, Code.UPLOAD_BUSY])
def test_passing_troubles_are_tried_again(code: Code) -> None:
    operation = Failing(1, Refused(Problem.of(code, "Later.")))
    assert Waits().retry(COMMAND_BACKOFF).call(operation) == "done"


@pytest.mark.parametrize("code", [Code.FORBIDDEN, Code.RUN_OVER, Code.INVALID_TENSOR, Code.OFFSET_MISMATCH])
def test_a_refusal_for_good_is_not_repeated(code: Code) -> None:
    operation = Failing(1, Refused(Problem.of(code, "No.")))
    with pytest.raises(Refused):
        Waits().retry(AGENT_BACKOFF).call(operation)
    assert operation.calls == 1


def test_progress_starts_the_schedule_anew() -> None:
    waits = Waits()
    attempts = waits.retry(Backoff(base=1.0, attempts=3)).start()
    attempts.failed(Unreachable("away"))
    attempts.failed(Unreachable("away"))
    attempts.progressed()
    attempts.failed(Unreachable("away"))
    assert waits.slept == [1, 2, 1]
