"""Real processes seen from outside: agents by the events they print, the coordinator by its worker; every wait is bounded."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil

from demo.cluster import Agent, Cluster

T = TypeVar("T")
PATIENCE = 180.0  # seconds that only something that hangs takes
POLL = 0.002  # seconds between looks


def until(condition: Callable[[], T | None], what: str) -> T:
    """The first value of `condition` that counts as true.

    Raises:
        TimeoutError: there was none.
    """
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE:.0f} s: {what}")
        # The only look-and-wait of these tests. What they look at tells nobody when it changes: rows that another process
        # writes, its files, its state. Only the coordinator could tell, and it is what they kill.
        time.sleep(POLL)
    return found


class Watched:
    """An agent's process whose JSON events are read as they come."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._open = True
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.agent.process.stdout is not None
        with self.agent.process.stdout as lines:
            for line in lines:
                with self._news:
                    self.events.append(json.loads(line))
                    self._news.notify_all()
        with self._news:
            self._open = False
            self._news.notify_all()

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The events of this kind so far."""
        return [event for event in self.events if event["event"] == kind]

    def expect(self, kind: str, **fields: object) -> dict[str, Any]:
        """The first event of this kind with these fields, now or later."""

        def found() -> dict[str, Any] | None:
            fitting = (one for one in self.told(kind) if fields.items() <= one.items())
            return next(fitting, None)

        with self._news:
            self._news.wait_for(lambda: found() or not self._open, PATIENCE)
            event = found()
        assert event is not None, f"{self.agent.name} never told {kind} {fields}: {self.events}\n{self.log()}"
        return event

    def log(self) -> str:
        """What the agent wrote for people."""
        return (self.agent.home / "agent.log").read_text()

    def kill(self) -> None:
        """`kill -9`; what it told until then is read."""
        self.agent.process.kill()
        self.close()

    def finish(self) -> int:
        """Wait until the agent ends by itself; its exit code."""
        try:
            return self.agent.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.agent.name} goes on: {self.events[-3:]}\n{self.log()}") from None

    def close(self) -> None:
        """Reap the ended process and its reader."""
        self.agent.process.wait(PATIENCE)
        self._reader.join()


@contextmanager
def watching(started: Sequence[Agent]) -> Iterator[list[Watched]]:
    """The agents, watched; those that have not ended by themselves are killed on leaving."""
    watched = [Watched(agent) for agent in started]
    try:
        yield watched
    finally:
        for one in watched:
            if one.agent.process.poll() is None:
                one.kill()
            one.close()


def worker_of(cluster: Cluster) -> psutil.Process:
    """The aggregation worker that the coordinator keeps."""
    assert cluster.process is not None
    coordinator = psutil.Process(cluster.process.pid)
    (worker,) = until(coordinator.children, "the coordinator starts a worker")
    assert "worker" in worker.cmdline()
    return worker


def gone(process: psutil.Process) -> bool:
    """Whether a process that is no child of ours has ended."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
