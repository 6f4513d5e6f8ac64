"""The coordinator's folder as a simulated disk: a power cut loses what was not synced.

A file's bytes survive as they were when it was last synced, its name if its folder was synced since. A rename is one change, as
in journaling file systems: it survives if either of its folders was synced. Real syncing is left out.
"""

import fcntl
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """All files of the folder by path."""

    files: dict[Path, bytes]


class Disk:
    """Watches one folder. `fsync` is to be called in place of `os.fsync`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real_fsync = os.fsync
        self._names: dict[Path, dict[str, int]] = {}  # of every folder, as synced: name to inode
        self._bytes: dict[int, bytes] = {}  # of every inode, as synced
        self._pins: list[int] = []  # descriptors that keep inodes from being used again
        self._born: dict[int, tuple[int, float]] = {}  # of every inode: its time of change, and the simulated one

    def holds(self, path: Path) -> bool:
        """Whether this is a path of the folder."""
        return str(path).startswith(f"{self.root}/")

    def settle(self) -> None:
        """All that is there now survives."""
        for pin in self._pins:
            os.close(pin)
        self._names, self._bytes, self._pins = {}, {}, []
        for folder, _, files in os.walk(self.root):
            self._sync_folder(Path(folder))
            for name in files:
                path = Path(folder, name)
                self._bytes[path.stat().st_ino] = path.read_bytes()

    def fsync(self, descriptor: int) -> None:
        """Note what survives from now on."""
        path = Path(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix(" (deleted)"))
        if not self.holds(path):
            return self.real_fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._sync_folder(path)
        else:
            self._pins.append(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))  # not dup: it would share the lock
            with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
                self._bytes[status.st_ino] = file.read()
        return None

    def _sync_folder(self, folder: Path) -> None:
        names = {entry.name: entry.inode() for entry in os.scandir(folder)}
        before, self._names[folder] = self._names.get(folder, {}), names
        for other, synced in self._names.items():  # renamed from there to here
            for name in [name for name, inode in synced.items() if inode in names.values()]:
                if other != folder and not (other / name).exists():
                    del synced[name]
        gone = {inode for name, inode in before.items() if name not in names}
        for path in self._files() if gone else ():  # renamed from here to there
            if path.stat().st_ino in gone:
                self._keep_name(path)

    def _keep_name(self, path: Path) -> None:
        self._names.setdefault(path.parent, {})[path.name] = path.stat().st_ino
        if path.parent != self.root:
            self._keep_name(path.parent)

    def cut_power(self) -> None:
        """Leave what was synced, and nothing else."""
        left: dict[Path, bytes] = {}
        self._collect(self.root, left)
        self.restore(Image(left))
        self.settle()

    def _collect(self, folder: Path, left: dict[Path, bytes]) -> None:
        for name, inode in self._names.get(folder, {}).items():
            path = folder / name
            if path in self._names or path.is_dir():
                self._collect(path, left)
            else:
                left[path] = self._bytes.get(inode, b"")

    def image(self) -> Image:
        """What is there now."""
        return Image({path: path.read_bytes() for path in self._files()})

    def _files(self) -> list[Path]:
        return [Path(folder, name) for folder, _, names in os.walk(self.root) for name in names]

    def restore(self, image: Image) -> None:
        """Undo what was written since."""
        for path in self._files():
            if path not in image.files:
                path.unlink()
        for path, content in image.files.items():
            if not path.exists() or path.read_bytes() != content:
                self._rewrite(path, content)

    def _rewrite(self, path: Path, content: bytes) -> None:
        """As another inode: whoever has the file open keeps what it had."""
        before = path.stat().st_ino if path.exists() else None
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        after = path.stat().st_ino
        if before in self._bytes:
            self._bytes[after] = self._bytes[before]
        for names in self._names.values():
            for name, inode in names.items():
                if inode == before:
                    names[name] = after

    def observe(self, now: float) -> None:
        """Files that were written since the last look were written at this simulated time."""
        for path in self._files():
            status = path.stat()
            if self._born.get(status.st_ino, (0, 0.0))[0] != status.st_mtime_ns:
                self._born[status.st_ino] = (status.st_mtime_ns, now)

    def age(self, now: float) -> None:
        """Make files look as old as they are in simulated time."""
        self.observe(now)
        for path in self._files():
            inode = path.stat().st_ino
            born = self._born[inode][1]
            if now - born > 3600:
                then = time.time() - (now - born)
                os.utime(path, (then, then))
                self._born[inode] = (path.stat().st_mtime_ns, born)

    def locked(self) -> bool:
        """Whether a process holds all blobs for itself."""
        path = self.root / "blobs.lock"
        if not path.exists():
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def wipe(self) -> None:
        """Empty the folder."""
        self._born = {}
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
