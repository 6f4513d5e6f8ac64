"""A Ray cluster as the pool: every module of a round is a task on some machine of the cluster.

Ray comes with the extra `ray`; this file alone imports it, and is imported where an address is set. A node reads the round's
files by itself, so that only results travel: `ray_node` is what runs there.
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from flexlora_server.worker.aggregate_module import Opened, Work
from flexlora_server.worker.executors.ray_node import Sent, on_node, versions
from flexlora_shared.messages.runs import ModuleSpec

log = logging.getLogger("flexlora.worker")
R = TypeVar("R")
RETRIES = 5  # of a module whose node or process died
AHEAD = 2  # modules for each processor of the cluster that are under way or wait to be written
WAIT = 1.0  # seconds between looks at the lease while a module is waited for


class RayPool:
    """The cluster at an address: `auto`, HOST:PORT of one that this machine is a node of, or ray://HOST:PORT of any.

    blobs_url: the object store that nodes fetch a round's files from; None: they see this machine's folder at the same path.
    """

    def __init__(self, address: str, blobs_url: str | None = None) -> None:
        self._address, self._blobs_url = address, blobs_url

    def over_modules(
        self, opened: Opened, task: Callable[[Opened, ModuleSpec], R], alive: Callable[[], None]
    ) -> Iterator[tuple[ModuleSpec, R]]:
        """See `Pool`.

        Raises:
            ConnectionError: the cluster cannot be reached or lost what it held: the place fails, not the round.
        """
        self._connect()
        try:
            yield from self._over_modules(opened.work, task, alive)
        except (WorkerCrashedError, OutOfMemoryError):
            raise  # the same module again and again: a failed attempt
        except RayError as error:
            ray.shutdown()  # the next aggregation connects anew
            raise ConnectionError(f"the Ray cluster at {self._address} failed: {error}") from error

    def _over_modules(
        self, work: Work, task: Callable[[Opened, ModuleSpec], R], alive: Callable[[], None]
    ) -> Iterator[tuple[ModuleSpec, R]]:
        sent = ray.put(Sent(uuid4().hex, versions(), self._blobs_url, work.located(Path.absolute)))
        gpus = 0 if work.device == "cpu" else 1
        module_on_node = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(on_node)
        waiting: deque[tuple[ModuleSpec, Any]] = deque()
        try:
            for module in work.spec.modules:
                waiting.append((module, module_on_node.remote(sent, task, module)))
                if len(waiting) > AHEAD * _processors():
                    yield _result(*waiting.popleft(), alive)
            while waiting:
                yield _result(*waiting.popleft(), alive)
        finally:
            for _, promised in waiting:
                ray.cancel(promised)

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        try:
            with _own_signals():
                ray.init(self._address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"no Ray cluster at FLEXLORA_RAY_ADDRESS={self._address}: start one with `ray start`, or unset it to "
                f"aggregate here ({error})"
            ) from error


def _result(module: ModuleSpec, promised: Any, alive: Callable[[], None]) -> tuple[ModuleSpec, Any]:
    """One module's result, once it is there; raises what its task raised."""
    alive()
    while not ray.wait([promised], timeout=WAIT)[0]:
        alive()
    try:
        done = ray.get(promised)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    return module, done


def _processors() -> int:
    """Of the nodes that live now, so that joining ones get work; 1 while there are none."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _own_signals() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself; a worker that is asked to end gives its round back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
