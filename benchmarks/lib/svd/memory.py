"""The anonymous memory of this process, and its peak while something runs."""

import ctypes
import threading
import time
from pathlib import Path
from typing import Self

STATUS = Path("/proc/self/status")
MIB = 2**20
SOONEST, LATEST = 0.004, 0.05  # seconds between two looks
SHARE = 0.01  # of the time since the start, in between: whatever is over soon is looked at often


class Peak:
    """The peak of this process' anonymous memory within the block, above what there was at its start.

    Memory-mapped files are not counted. `mib` is None where /proc does not tell.
    """

    mib: float | None = None

    def __init__(self) -> None:
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
        started = time.perf_counter()
        while not self._over.wait(min(LATEST, max(SOONEST, SHARE * (time.perf_counter() - started)))):
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
