"""The bad network of the tests does what it says."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.proxy import Fault, Kind, Proxy, proxy, scattered

WORD = bytes(range(256)) * 40


@contextmanager
def echo() -> Iterator[str]:
    """A server that sends back what it gets, on any number of connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    while content := connection.recv(1000):
                        connection.sendall(content)
                except OSError:
                    pass

        def all() -> None:
            try:
                while True:
                    threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()
            except OSError:
                pass

        thread = threading.Thread(target=all)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def ask(line: Proxy, word: bytes = WORD, timeout: float = 30) -> bytes:
    """What comes back for a word, until it is whole or the connection ends."""
    with socket.create_connection(("127.0.0.1", line.port), timeout=timeout) as connection:
        connection.sendall(word)
        found = b""
        while len(found) < len(word) and (content := connection.recv(5000)):
            found += content
        return found


def test_without_faults_everything_passes_and_is_counted() -> None:
    with echo() as url, proxy(url) as line:
        assert ask(line) == ask(line) == WORD
        assert line.taken == {"up": 2 * len(WORD), "down": 2 * len(WORD)}
        assert line.connections == 2


def test_a_cut_strikes_where_it_is_planned_and_once() -> None:
    with echo() as url, proxy(url, [Fault("cut", "down", 700)]) as line:
        assert ask(line) == WORD[:700]
        assert line.faults == []
        assert ask(line) == WORD


def test_places_are_counted_over_all_connections() -> None:
    with echo() as url, proxy(url, [Fault("cut", "down", len(WORD) + 5)]) as line:
        assert ask(line) == WORD
        assert ask(line) == WORD[:5]


def test_a_reset_is_one() -> None:
    with echo() as url, proxy(url, [Fault("reset", "up", 0)]) as line, pytest.raises(ConnectionResetError):
        ask(line)


def test_a_black_hole_takes_everything_and_says_nothing() -> None:
    with echo() as url, proxy(url, [Fault("hole", "up", 0)]) as line:
        with pytest.raises(TimeoutError):
            ask(line, timeout=0.05)
        assert ask(line) == WORD


@pytest.mark.parametrize(
    ("rate", "latency", "least"), [(100_000.0, 0.0, len(WORD) / 100_000), (None, 0.05, 0.1), (100_000.0, 0.05, 0.2)]
)
def test_a_slow_line_loses_nothing_and_takes_its_time(rate: float | None, latency: float, least: float) -> None:
    with echo() as url, proxy(url, rate=rate, latency=latency) as line:
        begun = time.monotonic()
        assert ask(line) == WORD
        assert time.monotonic() - begun >= 0.9 * least  # the only bound that holds on any machine


def test_scattered_faults_are_the_same_for_the_same_seed() -> None:
    kinds: tuple[Kind, ...] = ("cut", "hole")
    found = scattered(3, 20, "down", 1000, kinds)
    assert found == scattered(3, 20, "down", 1000, kinds)
    assert found != scattered(4, 20, "down", 1000, kinds)
    assert [fault.at for fault in found] == sorted({fault.at for fault in found})
    assert {fault.kind for fault in found} == {"cut", "hole"}
