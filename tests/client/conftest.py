"""A coordinator on SQLite with a worker that aggregates by itself, and an agent's environment free of the developer's own."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flexlora_server.storage import open_blobs
from flexlora_server.worker.worker import Worker
from tests.support.kit import Served, served_on_sqlite

VARIABLES = ("FLEXLORA_HOME", "FLEXLORA_URL", "FLEXLORA_OPERATOR_KEY", "FLEXLORA_TOKEN", "FLEXLORA_CA_FILE")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    """A running coordinator whose rounds are aggregated as they come."""
    with served_on_sqlite(tmp_path) as running, _working(running):
        yield running


class OneAtATime(Worker):
    """A worker that the test and the thread below can both ask to step: each waits until the other's step is done."""

    _lock = threading.Lock()

    def step(self) -> bool:
        with self._lock:
            return super().step()


@contextmanager
def _working(running: Served) -> Iterator[None]:
    """Let the coordinator's worker aggregate for the block."""
    stop = threading.Event()
    running.worker = OneAtATime(running.store, open_blobs(running.settings), running.settings)

    def loop() -> None:
        while not stop.wait(0.01):
            running.work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
