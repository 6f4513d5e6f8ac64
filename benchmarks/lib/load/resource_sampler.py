"""Samples a server under load: its memory, and how long a small call beside the load takes."""

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.lib.load.wire import Connection, Unexpected, connected

SAMPLE_INTERVAL_S = 0.02  # seconds between two looks at the memory
CALL = 0.1  # seconds between two small calls
MIB = 2**20
FRESH = 2.0  # seconds that a connection is used again after; servers close idle ones after five


@dataclass(frozen=True)
class SampledServer:
    """The server's process and the small call: its address, the path (without one there is no call), the key that may."""

    pid: int
    url: str = ""
    path: str = ""
    key: str = ""


@dataclass
class ResourceUsage:
    """What was measured: resident MiB before and at most, of these anonymous, processor seconds, seconds of each small call."""

    idle: float
    idle_anonymous: float | None
    peak: float = 0.0
    peak_anonymous: float | None = None
    cpu: float = 0.0
    calls: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def sample_resources(what: SampledServer) -> Iterator[ResourceUsage]:
    """Look and call from threads of this process until the block ends."""
    process = psutil.Process(what.pid)
    resident, anonymous = _memory(process)
    usage = ResourceUsage(resident, anonymous)
    over = threading.Event()
    threads = [threading.Thread(target=_sample_memory, args=(process, usage, over))]
    if what.path:
        threads.append(threading.Thread(target=lambda: asyncio.run(_call(what, usage, over))))
    before = process.cpu_times()
    for thread in threads:
        thread.start()
    try:
        yield usage
    finally:
        over.set()
        for thread in threads:
            thread.join()
        after = process.cpu_times()
        usage.cpu = after.user + after.system - before.user - before.system


def _sample_memory(process: psutil.Process, usage: ResourceUsage, over: threading.Event) -> None:
    while True:
        resident, anonymous = _memory(process)
        usage.peak = max(usage.peak, resident)
        if anonymous is not None:
            usage.peak_anonymous = max(usage.peak_anonymous or 0.0, anonymous)
        if over.wait(SAMPLE_INTERVAL_S):
            return


def _memory(process: psutil.Process) -> tuple[float, float | None]:
    """MiB: all that is resident, and without mapped files where /proc tells."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return process.memory_info().rss / MIB, None
    words = (line.split() for line in status.read_text().splitlines())
    kib = {found[0]: int(found[1]) for found in words if found[0] in {"VmRSS:", "RssAnon:"}}
    return kib["VmRSS:"] / 1024, kib["RssAnon:"] / 1024


async def _call(what: SampledServer, usage: ResourceUsage, over: threading.Event) -> None:
    """Ten calls a second, whatever becomes of those before: each is timed from when it was due, on a connection of its own."""
    free: list[tuple[float, Connection]] = []
    async with AsyncExitStack() as opened, asyncio.TaskGroup() as calls:
        due = time.perf_counter()
        while not over.is_set():
            calls.create_task(_timed(what, usage, due, free, opened))
            due += CALL
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _timed(
    what: SampledServer, usage: ResourceUsage, due: float, free: list[tuple[float, Connection]], opened: AsyncExitStack
) -> None:
    """One call, on a connection that no other uses meanwhile."""
    try:
        used, link = free.pop() if free else (0.0, None)
        if link is None or time.perf_counter() - used > FRESH:
            link = await opened.enter_async_context(connected(what.url, what.key))
        await link.call(200, "GET", what.path)
    except (OSError, Unexpected) as error:
        usage.errors.append(str(error) or repr(error))
        return
    usage.calls.append(time.perf_counter() - due)
    free.append((time.perf_counter(), link))


def milliseconds(calls: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile of calls, which are not empty."""
    ordered = sorted(calls)
    return 1000 * statistics.median(ordered), 1000 * ordered[round(0.99 * (len(ordered) - 1))]
