"""What a piece of work takes: seconds, memory, and how fast the machine multiplies matrices at that very time."""

import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")
STATUS = Path("/proc/self/status")
MIB = 2**20
SIDE = 2048  # of the matrices whose product is the machine's rate


@dataclass(frozen=True)
class Spent(Generic[T]):
    """What was made, the median seconds of how many runs, the peak of memory, and the fp32 GEMM rate beside them."""

    made: T
    seconds: float
    runs: int
    peak_mib: float | None
    gflops: float


class Peak:
    """The peak of this process' anonymous memory within the block, above what there was at its start.

    Memory-mapped files are not counted. `mib` is None where /proc does not tell.
    """

    mib: float | None = None

    def __init__(self, every: float = 0.004) -> None:
        self._every = every
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        _give_back()
        self._before = anonymous()
        if self._before is not None:
            self.mib = 0.0
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._sampler.is_alive():
            self._sampler.join()

    def _sample(self) -> None:
        while not self._over.wait(self._every):
            self.mib = max(self.mib or 0.0, ((anonymous() or 0) - (self._before or 0)) / MIB)


def anonymous() -> int | None:
    """Bytes of this process' anonymous resident memory."""
    if not STATUS.exists():
        return None
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "RssAnon:"), None)


def _give_back() -> None:
    """Freed memory that the allocator keeps would hide what is taken next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def once(work: Callable[[], T]) -> Spent[T]:
    """One run, for what takes long."""
    rates = [gflops()]
    with Peak() as peak:
        started = time.perf_counter()
        made = work()
        seconds = time.perf_counter() - started
    return Spent(made, seconds, 1, peak.mib, statistics.mean([*rates, gflops()]))


def repeated(work: Callable[[], T], runs: int, budget: float) -> Spent[T]:
    """The median of `runs` after a first that warms up and shows the memory; fewer, but one, if they would take over `budget`."""
    first = once(work)
    rates, seconds = [], []
    for _ in range(max(1, min(runs, int(budget / max(first.seconds, 1e-9))))):
        rates.append(gflops())
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return Spent(first.made, statistics.median(seconds), len(seconds), first.peak_mib, statistics.median(rates))


def gflops() -> float:
    """The rate of a float32 matrix product, 10^9 operations a second: the median of three."""
    left, right, seconds = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE), []
    for _ in range(3):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / statistics.median(seconds) / 1e9
