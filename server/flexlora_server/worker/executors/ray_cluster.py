"""An executor on a Ray cluster: every module of a round is a task on some machine of the cluster.

Ray comes with the extra `ray`; only this file imports it, and only where an address is set. A node reads the round's files by
itself, so that only results travel: `ray_node` runs there.
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

from flexlora_server.worker.aggregate_module import ModuleAggregator, RoundWork
from flexlora_server.worker.executors.ray_node import NodeWork, required_versions, run_on_node
from flexlora_shared.messages.runs import ModuleSpec

log = logging.getLogger("flexlora.worker")
R = TypeVar("R")
MAX_TASK_RETRIES = 5  # for a module whose node or process died
MODULES_PER_CPU = 2  # of the cluster, submitted or waiting to be written
LEASE_CHECK_INTERVAL_S = 1.0  # while a module is waited for


class RayExecutor:
    """The cluster at an address: `auto`, HOST:PORT of one that this machine is a node of, or ray://HOST:PORT of any.

    blobs_url: the object store that nodes fetch a round's files from; None: they see this machine's folder at the same path.
    """

    def __init__(self, address: str, blobs_url: str | None = None) -> None:
        self._address, self._blobs_url = address, blobs_url

    def map_modules(
        self,
        aggregator: ModuleAggregator,
        task: Callable[[ModuleAggregator, ModuleSpec], R],
        check_alive: Callable[[], None],
    ) -> Iterator[tuple[ModuleSpec, R]]:
        """See `Executor`.

        Raises:
            ConnectionError: the cluster cannot be reached or lost its data: the place fails, not the round.
        """
        named = f"FLEXLORA_RAY_ADDRESS={self._address}"
        connect(self._address, named, "unset it to aggregate here")
        try:
            yield from self._map_modules(aggregator.work, task, check_alive)
        except (WorkerCrashedError, OutOfMemoryError):
            raise  # the same module again and again: a failed attempt
        except RayError as error:
            ray.shutdown()  # the next aggregation connects anew
            raise ConnectionError(f"the Ray cluster at {self._address} failed: {error}") from error

    def _map_modules(
        self, work: RoundWork, task: Callable[[ModuleAggregator, ModuleSpec], R], check_alive: Callable[[], None]
    ) -> Iterator[tuple[ModuleSpec, R]]:
        node_work = ray.put(NodeWork(uuid4().hex, required_versions(), self._blobs_url, work.with_paths(Path.absolute)))
        gpus = 0 if work.device == "cpu" else 1
        remote_module = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_TASK_RETRIES)(run_on_node)
        waiting: deque[tuple[ModuleSpec, Any]] = deque()
        try:
            for module in work.spec.modules:
                waiting.append((module, remote_module.remote(node_work, task, module)))
                if len(waiting) > MODULES_PER_CPU * _cpu_count():
                    yield _result(*waiting.popleft(), check_alive)
            while waiting:
                yield _result(*waiting.popleft(), check_alive)
        finally:
            for _, reference in waiting:
                ray.cancel(reference)


def connect(address: str, named: str, instead: str) -> None:
    """Connect this process to the cluster, where it is not connected yet.

    Raises:
        ConnectionError: it is not there; `named` says whose address that is, `instead` how to do without.
    """
    if ray.is_initialized():
        return
    try:
        with _keep_sigterm_handler():
            ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        ray.shutdown()  # a failure at ray:// leaves Ray as its client, and no other address is tried as what it is
        raise ConnectionError(
            f"no Ray cluster at {named}: start one with `ray start`, or {instead} ({error})"
        ) from error


def _result(module: ModuleSpec, reference: Any, check_alive: Callable[[], None]) -> tuple[ModuleSpec, Any]:
    """Wait for one module's result; raises what its task raised."""
    check_alive()
    while not ray.wait([reference], timeout=LEASE_CHECK_INTERVAL_S)[0]:
        check_alive()
    try:
        result = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    return module, result


def _cpu_count() -> int:
    """Of the nodes alive now, so that joining nodes get work; 1 while there are none."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the SIGTERM handler that `ray.init` replaces: a worker that is stopped gives its round back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
