"""Programs under a limit of memory and with a part of a processor: Linux control groups, version 1 or 2, made as root."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000


@dataclass(frozen=True)
class Limits:
    """What a program may take; None: no limit."""

    memory_bytes: int | None = None
    processors: float | None = None


def can_confine() -> bool:
    """Whether control groups can be made here."""
    try:
        with _groups(Limits(2**30, 0.5)):
            return True
    except OSError:
        return False


def run_confined(command: Sequence[str], limits: Limits, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end under the limits; `options` are those of `subprocess.run`."""
    with _groups(limits) as groups:

        def enter() -> None:
            for group in groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        return subprocess.run(command, preexec_fn=enter, text=True, check=False, **options)


@contextmanager
def _groups(limits: Limits) -> Iterator[list[Path]]:
    """New control groups with these limits, removed afterwards. Raises: OSError."""
    made: list[Path] = []
    name = f"flexlora-{os.getpid()}"
    try:
        if (ROOT / "cgroup.controllers").exists():
            made.append(_made(ROOT / name))
            if limits.memory_bytes is not None:
                (made[0] / "memory.max").write_text(str(limits.memory_bytes))
            if limits.processors is not None:
                (made[0] / "cpu.max").write_text(f"{round(limits.processors * PERIOD_US)} {PERIOD_US}")
        else:
            if limits.memory_bytes is not None:
                made.append(_made(ROOT / "memory" / name))
                (made[-1] / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            if limits.processors is not None:
                made.append(_made(ROOT / "cpu" / name))
                (made[-1] / "cpu.cfs_quota_us").write_text(str(round(limits.processors * PERIOD_US)))
        yield made
    finally:
        for group in made:
            group.rmdir()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
