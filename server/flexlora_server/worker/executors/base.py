"""Executors spread the modules of one aggregation over threads or machines, and return the results in the modules' order.

The executor on a Ray cluster is in `ray_cluster`. One LAPACK thread a module: two threads in one factorization were 20 times
slower than one on a busy two-core machine.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.worker.aggregate_module import ModuleAggregator
from flexlora_shared.messages.runs import ModuleSpec

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Runs a task for every module of one aggregation."""

    def map_modules(
        self,
        aggregator: ModuleAggregator,
        task: Callable[[ModuleAggregator, ModuleSpec], R],
        check_alive: Callable[[], None],
    ) -> Iterator[tuple[ModuleSpec, R]]:
        """`task` of every module, in the run's order, a bounded number at a time; the same bytes whatever ran the task.

        `check_alive` is called before each result is returned, and while one is waited for; it raises to stop the work.
        `task` must be picklable: a function of a module, a method of `ModuleAggregator`, or a `partial` of one.
        """


def create_executor(settings: Settings) -> Executor:
    """The executor that the settings ask for.

    Raises:
        StartupError: Ray is asked for, but not installed.
    """
    if settings.ray_address is None:
        return ThreadExecutor()
    try:
        from flexlora_server.worker.executors.ray_cluster import RayExecutor
    except ModuleNotFoundError as error:
        raise StartupError(
            f"FLEXLORA_RAY_ADDRESS is set, but {error.name} is not installed here: pip install 'flexlora[ray]'"
        ) from error
    return RayExecutor(settings.ray_address, settings.blobs_url)


class ThreadExecutor:
    """Runs `work.threads` modules at a time, in threads of this process."""

    def map_modules(
        self,
        aggregator: ModuleAggregator,
        task: Callable[[ModuleAggregator, ModuleSpec], R],
        check_alive: Callable[[], None],
    ) -> Iterator[tuple[ModuleSpec, R]]:
        """See `Executor`."""
        work = aggregator.work
        for result in _map_in_threads(lambda module: task(aggregator, module), work.spec.modules, work.threads):
            check_alive()
            yield result


def _map_in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """`function` of each item, in order, at most `threads` at a time and one more submitted."""
    # set in every thread: otherwise the first product in a new one would be summed in another order
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: deque[tuple[T, Future[R]]] = deque()
        try:
            for item in items:
                running.append((item, pool.submit(function, item)))
                if len(running) > threads:
                    first, future = running.popleft()
                    yield first, future.result()
            while running:
                first, future = running.popleft()
                yield first, future.result()
        finally:
            for _, future in running:
                future.cancel()
