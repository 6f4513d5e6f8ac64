"""Local copies of an object store's blobs: bounded, the least recently used go first, each verified by its digest.

Several processes share the folder. A copy is written whole before it has its name; one that is mapped survives its deletion.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.files import Damaged, digest, scratch

USED = 600.0  # seconds after its last use in which a copy stays, whatever the bound: somebody may be about to open it
_fetching = [
    threading.Lock() for _ in range(64)
]  # one fetch of a blob in a process: many agents ask for the same slice


class Cache:
    """Copies in a folder, of at most `limit` bytes in all, or what was used within the last `grace` seconds."""

    def __init__(self, folder: Path, limit: int, grace: float = USED) -> None:
        self._folder, self._limit, self._grace = folder, limit, grace
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str, fetch: Callable[[BinaryIO], None]) -> Path:
        """The copy; `fetch` writes the bytes where there is none.

        Raises:
            Damaged: the bytes fetched do not have the digest.
            OSError: they cannot be fetched.
        """
        with _fetching[int(sha256[:8], 16) % len(_fetching)]:
            if self._use(sha256):
                return self._folder / sha256
            with scratch(self._folder) as file:
                fetch(file)
                fsync.sync(file)  # a copy is trusted by its name: also after a power cut it must be what was hashed
                if (found := digest(Path(file.name))) != sha256:
                    raise Damaged(f"the storage holds other bytes under {sha256}: their SHA-256 is {found}")
                return self.adopt(sha256, Path(file.name))

    def adopt(self, sha256: str, file: Path) -> Path:
        """Make a synced file the copy."""
        os.utime(file)
        file.replace(self._folder / sha256)
        fsync.sync_folder(self._folder)
        self._evict(sha256)
        return self._folder / sha256

    def _use(self, sha256: str) -> bool:
        try:
            os.utime(self._folder / sha256)
        except FileNotFoundError:
            return False
        return True

    def drop(self, sha256: str) -> None:
        """Forget a copy."""
        (self._folder / sha256).unlink(missing_ok=True)

    def _evict(self, keep: str) -> None:
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total, young = sum(size for _, size, _ in found), time.time() - self._grace
        for used, size, path in sorted(found):
            if total <= self._limit or used > young:
                return
            if path.name != keep:
                path.unlink(missing_ok=True)
                total -= size
