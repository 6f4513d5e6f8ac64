"""When training must end so that a round's deadline is met."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from flexlora_client.agent import round_time
from flexlora_client.agent.round_time import MARGIN_S, UNMEASURED_BYTES_PER_S, UPLOAD_VARIES, RoundTime

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The machine's time, moved by the test."""
    now = [NOW]
    reading = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(round_time, "time", SimpleNamespace(time=reading, monotonic=reading))
    return now


def deadline(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat().replace("+00:00", "Z")


def test_without_measurements_the_upload_is_taken_as_slow() -> None:
    found = RoundTime().training_deadline(deadline(1000), 0.0, 10 * UNMEASURED_BYTES_PER_S)
    assert found == pytest.approx(NOW + 1000 - 10 - MARGIN_S)


def test_at_least_half_of_what_is_left_is_for_training() -> None:
    assert RoundTime(upload=10.0).training_seconds(100.0, 0) == 100.0 - UPLOAD_VARIES * 10.0 - MARGIN_S
    assert RoundTime(upload=10.0).training_seconds(8.0, 0) == 4.0


def test_what_comes_after_training_is_measured(clock: list[float]) -> None:
    times = RoundTime()
    with times.evaluating():
        clock[0] += 20
    with times.uploading():
        clock[0] += 40
    expected = NOW + 1000 - 20 - UPLOAD_VARIES * 40 - MARGIN_S
    assert times.training_deadline(deadline(1000), 0.0, 10**9) == pytest.approx(expected)


def test_the_coordinators_clock_counts() -> None:
    found = RoundTime().training_deadline(deadline(1000), 300.0, 0)
    assert found == pytest.approx(NOW + 700 - MARGIN_S)


def test_half_of_the_time_left_is_for_training() -> None:
    assert RoundTime(evaluation=900.0).training_deadline(deadline(1000), 0.0, 0) == pytest.approx(NOW + 500)


def test_a_deadline_that_has_passed_lies_in_the_past() -> None:
    assert RoundTime().training_deadline(deadline(-10), 0.0, 0) < NOW
