"""Signals while a round is trained."""

import signal
import threading
from collections.abc import Iterator

import pytest

from flexlora_client.agent.stop_signals import stop_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _as_from_a_terminal() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_is_noted_and_the_second_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    told: list[str] = []
    with stop_signals(lambda: told.append("stopping")) as stop:
        assert not stop()
        signal.raise_signal(first)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert told == ["stopping"]


def test_afterwards_signals_are_what_they_were() -> None:
    with stop_signals(lambda: None) as stop:
        pass
    assert not stop()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals(lambda: None) as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop()


def test_what_is_told_may_wait_for_what_was_interrupted() -> None:
    lock, told = threading.Lock(), list[str]()

    def tell() -> None:
        with lock:
            told.append("stopping")

    with stop_signals(tell), lock:  # as a stream's lock, in the middle of a line
        signal.raise_signal(signal.SIGINT)
        assert told == []
    assert told == ["stopping"]


def test_elsewhere_than_in_the_main_thread_nothing_changes() -> None:
    found: list[bool] = []

    def training() -> None:
        with stop_signals(lambda: None) as stop:
            found.append(stop())

    thread = threading.Thread(target=training)
    thread.start()
    thread.join()
    assert found == [False]
