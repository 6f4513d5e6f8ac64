"""Measures seconds and memory of a function, and how fast the machine multiplies matrices at the same time.

Seconds are CPU time of the thread that works, the only one: on an idle machine those that pass, and on one that others use, too,
without the time for which it had to wait.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits

from benchmarks.lib.svd.memory import Peak

T = TypeVar("T")
SIDE = 2048  # of the matrices whose product is the machine's rate
SHORT = 5.0  # seconds: what takes no longer is run once more, for its memory


@dataclass(frozen=True)
class Spent(Generic[T]):
    """What was made, the median seconds of how many runs, the peak of memory, and the fp32 GEMM rate beside them.

    gflop: how many 10^9 operations of such products would have taken as long: the median over the pairs of a run and a rate.
    """

    made: T
    seconds: float
    runs: int
    peak_mib: float | None
    gflops: float
    gflop: float


def repeated(work: Callable[[], T], runs: int, budget: float) -> Spent[T]:
    """The median of `runs` after a first that warms up and shows the memory; fewer if they would take over `budget` seconds.

    Memory is not looked at while the clock runs. Only where the budget has no room for a second run, the first, looked at
    every 50 ms, is the one that counts.
    """
    rates = [gflops()]
    with Peak() as peak:
        made, first = timed(work)
    seconds = []
    for _ in range(min(runs, int(budget / max(first, 1e-9)) - 1)):
        rates.append(gflops())
        seconds.append(timed(work)[1])
    if not seconds:
        seconds, rates = [first], [statistics.mean([*rates, gflops()])]
    else:
        del rates[0]
    as_products = statistics.median(run * rate for run, rate in zip(seconds, rates, strict=True))
    return Spent(made, statistics.median(seconds), len(seconds), peak.mib, statistics.median(rates), gflop=as_products)


def once(work: Callable[[], T]) -> Spent[T]:
    """One run, for what takes long; what does not has one before it that shows the memory."""
    return repeated(work, 1, 2 * SHORT)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What was made, and the seconds."""
    started = time.thread_time()
    made = work()
    return made, time.thread_time() - started


def gflops() -> float:
    """The rate of a float32 matrix product, 10^9 operations a second: the median of three."""
    left, right = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    return 2 * SIDE**3 / statistics.median(timed(lambda: left @ right)[1] for _ in range(3)) / 1e9


def one_thread() -> AbstractContextManager[object]:
    """Torch, and within the block every BLAS and OpenMP that is loaded by now, on one thread.

    Every library brings its own, and torch's setting reaches none of them.
    """
    torch.set_num_threads(1)
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
