"""How much memory a device has left for this process, and the most that the process took of it.

Main memory ends at what the machine has, at a control group's limit (containers) or at a limit of the process (`ulimit`).
Counted is what cannot be dropped when memory is short: on Linux without pages of files (libraries, mapped weights), else all
that is resident.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import torch

CGROUP_ROOT = Path("/sys/fs/cgroup")
# limit, use and the entries of memory.stat that count pages of files, which the kernel drops when memory is short
CGROUP_FILES = {
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}
SAMPLE_S = 0.005  # between two looks at main memory


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    status = _status()
    if status:
        return status["RssAnon"] + status["RssShmem"]
    rss: int = psutil.Process().memory_info().rss
    return rss


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that this process can take in addition."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_cgroup_room(), *_process_room()]))


class PeakMemory:
    """A context that measures the most bytes this process held of the device's memory inside it, as `bytes`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._end = threading.Event()
        self._sampling = threading.Thread(target=self._sample, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._sampling.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_reserved(self._device)
        else:
            self._end.set()
            self._sampling.join()

    def _sample(self) -> None:
        """The system counts the most resident memory, but with pages of files, so it has to be looked at again and again."""
        while not self._end.wait(SAMPLE_S):
            self.bytes = max(self.bytes, used_memory(self._device))


@contextmanager
def at_most(growth: float, device: torch.device) -> Iterator[None]:
    """Let allocations of main memory fail beyond this growth (bytes), where the kernel might kill the process without a word.

    Bounds what the process may write to (RLIMIT_DATA), on Linux. That counts what was freed and kept for reuse too, so it suits
    a short measurement and not a whole round.
    """
    status = _status()
    if device.type == "cuda" or not status:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([round(status["VmData"] + growth), *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status in bytes; empty where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}


def _process_room() -> Iterator[int]:
    """What the limits of this process leave."""
    status = _status()
    if sys.platform == "win32" or not status:
        return
    import resource

    for kind, used in ((resource.RLIMIT_AS, status["VmSize"]), (resource.RLIMIT_DATA, status["VmData"])):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - used


def _cgroup_room() -> Iterator[int]:
    """What the limits of this process's control group, and of the groups around it, leave."""
    for version, folder in _cgroup_folders():
        limit_file, usage_file, droppable = CGROUP_FILES[version]
        try:
            limit, usage = (folder / limit_file).read_text().strip(), int((folder / usage_file).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max" and int(limit) < psutil.virtual_memory().total:
            yield int(limit) - usage + sum(int(stat.get(name, 0)) for name in droppable)


def _cgroup_folders() -> Iterator[tuple[int, Path]]:
    """The folders of the control groups that bound this process's memory, with the interface's version."""
    for entry in _cgroup_entries():
        _, controllers, path = entry.split(":", 2)
        if controllers in ("", "memory"):
            version, root = (2, CGROUP_ROOT) if not controllers else (1, CGROUP_ROOT / "memory")
            inside = root / path.lstrip("/")
            yield from ((version, folder) for folder in (inside, *inside.parents) if folder.is_relative_to(root))


def _cgroup_entries() -> list[str]:
    try:
        return Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
