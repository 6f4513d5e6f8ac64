"""Blobs in a local folder: `blobs/ab/abcd…`. A file is renamed into place; what is read is the blob itself."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexlora_server.storage import fsync
from flexlora_server.storage.blob_protocol import Entry


class LocalObjects:
    """Objects that are files under a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        fsync.sync_folder(root)

    def put(self, key: str, file: Path) -> None:
        """Rename the file into place, the same bytes again too: the blob is young from now on."""
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync.sync_folder(target.parent.parent)  # first, or a new folder could be lost with what was renamed into it
        with self._lock(fcntl.LOCK_SH):
            os.utime(file)
            if file != target:  # else renamed by somebody who may have died before the folders were synced
                file.replace(target)
        fsync.sync_folder(target.parent)

    def get(self, key: str, *, anew: bool = False) -> Path:
        """The object's own file, never a copy; whoever opens it finds out whether it is there."""
        return self._root / key

    def list(self, prefix: str) -> Iterator[Entry]:
        """Walk the folder."""
        if not prefix.endswith("/"):
            yield from self._entries(Path(prefix).parent, [Path(prefix).name])
            return
        for folder, _, names in os.walk(self._root / prefix):
            yield from self._entries(Path(folder).relative_to(self._root), names)

    def _entries(self, folder: Path, names: Iterable[str]) -> Iterator[Entry]:
        inside, at = f"{folder.as_posix()}/", f"{self._root / folder}/"  # strings: there may be many
        for name in names:
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield Entry(inside + name, os.stat(at + name).st_mtime)  # noqa: PTH116

    def delete(self, key: str, seen: Entry | None = None) -> None:
        """Delete the file; one that is being published again stays."""
        path = self._root / key
        if seen is None:
            path.unlink(missing_ok=True)
            return
        with suppress(BlockingIOError, FileNotFoundError), self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
            if path.stat().st_mtime == seen.modified:
                path.unlink()

    def link(self, key: str) -> str | None:
        """A folder has no address."""
        return None

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        with (self._root / "blobs.lock").open("ab") as file:
            fcntl.flock(file, kind)
            yield
