"""A Ray cluster for each test; nothing here is collected where Ray is not installed."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

collect_ignore_glob = [] if importlib.util.find_spec("ray") else ["test_*.py"]


@dataclass(frozen=True)
class TwoNodes:
    """A cluster that this process is no part of until it connects. Nodes are named by their ids."""

    address: str
    head: str
    worker: str
    worker_raylet: int  # a process

    def worker_processes(self) -> list[psutil.Process]:
        """The worker node's raylet and all that it started."""
        raylet = psutil.Process(self.worker_raylet)
        return [raylet, *raylet.children(recursive=True)]


@pytest.fixture
def cluster() -> Iterator[TwoNodes]:
    """See `two_nodes`, which starts it."""
    import ray

    command = [sys.executable, "-m", "tests.ray.two_nodes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        started = next((line for line in process.stdout if line.startswith("{")), None)
        assert started is not None, "the cluster did not start: see above"
        yield TwoNodes(**json.loads(started))
        ray.shutdown()
        process.stdin.close()
        for _ in process.stdout:  # read on, so that it can end
            pass
