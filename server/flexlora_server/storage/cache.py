"""A bounded cache of an object store's blobs in local files: the least recently used are evicted first, digests are verified.

Several processes share the folder. A copy gets its name once it is complete; a file that is memory-mapped survives its deletion.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.files import DamagedBlob, digest, temporary_file

GRACE_S = 600.0  # after its last use a copy is kept for so long, whatever the bound: it may be about to be opened
_FETCH_LOCKS = [
    threading.Lock() for _ in range(64)
]  # one fetch of a blob at a time in a process: many agents ask for the same slice


class BlobCache:
    """Copies in a folder, of at most `limit` bytes in all, or what was used within the last `grace` seconds."""

    def __init__(self, folder: Path, limit: int, grace: float = GRACE_S) -> None:
        self._folder, self._limit, self._grace = folder, limit, grace
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str, fetch: Callable[[BinaryIO], None]) -> Path:
        """The copy; `fetch` writes the bytes where there is none.

        Raises:
            DamagedBlob: the bytes fetched do not have the digest.
            OSError: they cannot be fetched.
        """
        with _FETCH_LOCKS[int(sha256[:8], 16) % len(_FETCH_LOCKS)]:
            if self._touch(sha256):
                return self._folder / sha256
            with temporary_file(self._folder) as file:
                fetch(file)
                fsync.sync(file)  # a copy is trusted by its name, also after a power failure
                if (actual := digest(Path(file.name))) != sha256:
                    raise DamagedBlob(f"the storage holds other bytes under {sha256}: their SHA-256 is {actual}")
                return self.adopt(sha256, Path(file.name))

    def adopt(self, sha256: str, file: Path) -> Path:
        """Move a synced file into the cache as the copy of the blob."""
        os.utime(file)
        file.replace(self._folder / sha256)
        fsync.sync_folder(self._folder)
        self._evict(sha256)
        return self._folder / sha256

    def _touch(self, sha256: str) -> bool:
        try:
            os.utime(self._folder / sha256)
        except FileNotFoundError:
            return False
        return True

    def drop(self, sha256: str) -> None:
        """Delete a copy."""
        (self._folder / sha256).unlink(missing_ok=True)

    def _evict(self, keep: str) -> None:
        copies = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        total, recent = sum(size for _, size, _ in copies), time.time() - self._grace
        for used, size, path in sorted(copies):
            if total <= self._limit or used > recent:
                return
            if path.name != keep:
                path.unlink(missing_ok=True)
                total -= size
