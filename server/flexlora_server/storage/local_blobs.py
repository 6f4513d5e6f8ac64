"""Blobs as files of a local folder: `blobs/ab/abcd…`. A file is renamed into place and read in place."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexlora_server.storage import fsync
from flexlora_server.storage.blob_protocol import BlobEntry


class LocalBlobs:
    """A `BlobBackend` whose objects are files under a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        fsync.sync_folder(root)

    def put(self, key: str, file: Path) -> None:
        """Rename the file into place, also where the same bytes exist: that renews the blob's modification time."""
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync.sync_folder(target.parent.parent)  # first: otherwise a new folder could be lost together with the file
        with self._lock(fcntl.LOCK_SH):
            os.utime(file)
            if file != target:  # else renamed by a process that may have died before the folders were synced
                file.replace(target)
        fsync.sync_folder(target.parent)

    def get(self, key: str, *, refetch: bool = False) -> Path:
        """The object's own file, never a copy; it may not exist."""
        return self._root / key

    def list(self, prefix: str) -> Iterator[BlobEntry]:
        """Walk the folder."""
        if not prefix.endswith("/"):
            yield from self._entries(Path(prefix).parent, [Path(prefix).name])
            return
        for folder, _, names in os.walk(self._root / prefix):
            yield from self._entries(Path(folder).relative_to(self._root), names)

    def _entries(self, folder: Path, names: Iterable[str]) -> Iterator[BlobEntry]:
        key_prefix, path_prefix = f"{folder.as_posix()}/", f"{self._root / folder}/"  # strings: there may be many
        for name in names:
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield BlobEntry(key_prefix + name, os.stat(path_prefix + name).st_mtime)  # noqa: PTH116

    def delete(self, key: str, if_unchanged: BlobEntry | None = None) -> None:
        """Delete the file, unless it is being published again."""
        path = self._root / key
        if if_unchanged is None:
            path.unlink(missing_ok=True)
            return
        with suppress(BlockingIOError, FileNotFoundError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            if path.stat().st_mtime == if_unchanged.modified:
                path.unlink()

    def presigned_url(self, key: str) -> str | None:
        """A local folder has no URLs."""
        return None

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        with (self._root / "blobs.lock").open("ab") as file:
            fcntl.flock(file, kind)
            yield
