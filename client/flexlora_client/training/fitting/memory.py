"""How much memory a device has left for this process, and the most that the process took of it.

Main memory ends at what the machine has, at a control group's limit (containers) or at a limit of the process (`ulimit`).
Counted is resident memory: what `VmRSS` and `VmHWM` of Linux's /proc/PID/status count.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

CGROUP_ROOT = Path("/sys/fs/cgroup")
# limit, use and the entry of memory.stat that counts file pages which the kernel drops when memory is short
CGROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    rss: int = psutil.Process().memory_info().rss
    return rss


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that this process can take in addition."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_cgroup_room(), *_process_room()]))


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement for `peak_memory`. Where the system has no such thing, the old peak stays."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held of the device's memory since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = _status()
    if "VmHWM" in status:
        return status["VmHWM"]
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
            yield int(limit) - usage + int(stat.get(droppable, 0))


def _cgroup_folders() -> Iterator[tuple[int, Path]]:
    try:
        entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers in ("", "memory"):
            version, root = (2, CGROUP_ROOT) if not controllers else (1, CGROUP_ROOT / "memory")
            inside = root / path.lstrip("/")
            yield from ((version, folder) for folder in (inside, *inside.parents) if folder.is_relative_to(root))
