"""Small disks of the kernel's own, that can be filled up and made read-only; only root may mount them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs."""

    folder: Path

    @property
    def left(self) -> int:
        """Bytes that can still be written."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, leaving: int = 0) -> None:
        """Leave so many bytes."""
        with self._ballast.open("ab") as file:
            while (more := self.left - leaving) > 0:
                with suppress(OSError):  # somebody else wrote meanwhile: look again
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)

    def free(self) -> None:
        """Take away what `fill` wrote."""
        self._ballast.unlink()

    def read_only(self) -> None:
        """Refuse writes; fails where a file is open for writing."""
        _run("mount", "-o", "remount,ro", str(self.folder))

    def writable(self) -> None:
        """Take writes again."""
        _run("mount", "-o", "remount,rw", str(self.folder))


@contextmanager
def small_disk(folder: Path, mebibytes: int = 64) -> Iterator[Disk]:
    """A disk at `folder`, which is made; skips the test where this user may not mount."""
    folder.mkdir(parents=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "flexlora-test", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield Disk(folder)
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
