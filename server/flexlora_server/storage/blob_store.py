"""What everybody uses of the storage: finished blobs by their SHA-256, files being written, and uploads on their way."""

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.blob_protocol import Entry, Objects
from flexlora_server.storage.files import Damaged, digest, scratch, second_name
from flexlora_server.storage.upload_protocol import Incoming

PROBE = "probe/written"  # the key of the object that shows whether and when the storage takes writes
EVICTED = 3  # times that a copy may be evicted before its second name is given up
log = logging.getLogger("flexlora.blobs")


@dataclass(frozen=True)
class Blob:
    """A finished blob: hexadecimal SHA-256 and size in bytes."""

    sha256: str
    size: int


class BlobStore:
    """Blobs in `objects`, uploads on their way in `incoming`, files being written in the folder `temporary`."""

    def __init__(self, objects: Objects, incoming: Incoming, temporary: Path) -> None:
        self.incoming = incoming
        self._objects, self._temporary = objects, temporary
        temporary.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """A local file of the blob: itself, or a copy of it that stays for some minutes; `pinned` keeps it longer.

        Raises:
            FileNotFoundError: an object store has no such blob; a local folder leaves that to whoever opens the path.
        """
        return self._objects.get(_key(sha256))

    def whole(self, sha256: str) -> Path:
        """As `path`, hashed anew: a local copy of other bytes is dropped and fetched again.

        Raises:
            Damaged: the storage itself holds other bytes.
            FileNotFoundError: there is no such blob.
        """
        path = self.path(sha256)
        if digest(path) != sha256:
            path = self._objects.get(_key(sha256), anew=True)
            if (found := digest(path)) != sha256:
                raise Damaged(f"the storage holds other bytes under {sha256}: their SHA-256 is {found}")
        return path

    @contextmanager
    def pinned(self) -> Iterator[Callable[[str], Path]]:
        """Within the block, what `path` does, under names of its own that stay until its end, or a day after the last one."""
        folder = self._temporary / f"pins-{secrets.token_hex(16)}"
        folder.mkdir()
        try:
            yield lambda sha256: self._pin(sha256, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _pin(self, sha256: str, folder: Path) -> Path:
        name = folder / sha256
        for left in reversed(range(EVICTED)):
            try:
                if not name.exists():
                    second_name(self.path(sha256), name)
                break
            except FileNotFoundError:  # not there, or a copy that was evicted before it had its second name
                if not left:
                    raise
        return name

    @contextmanager
    def publishing(self, digests: Iterable[str]) -> Iterator[None]:
        """For the transaction that names blobs just made: what a sweep deletes meanwhile is put back.

        It had asked for their age before they were made, and stores have no deletion on condition.
        """
        with self.pinned() as pin:
            held = {sha256: pin(sha256) for sha256 in digests}
            yield
            for sha256, path in held.items():
                try:
                    if next(self._objects.list(_key(sha256)), None) is None:
                        self._objects.put(_key(sha256), path)
                except OSError as error:  # it is named now: nothing to take back, and hardly ever anything lost
                    log.warning("it could not be seen that the blob %s is still in the storage: %s", sha256, error)

    def link(self, sha256: str) -> str | None:
        """An address from which anyone may read the blob for a while, where the storage gives such."""
        return self._objects.link(_key(sha256))

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A new temporary file, open for writing and reading; `finish` makes it a blob, leaving the block deletes it."""
        with scratch(self._temporary) as file:
            yield file

    def finish(self, file: BinaryIO) -> Blob:
        """Hash, sync and publish a file of `writing`."""
        fsync.sync(file)
        size, path = file.tell(), Path(file.name)
        sha256 = digest(path)
        self._objects.put(_key(sha256), path)
        return Blob(sha256, size)

    def add(self, source: Path) -> Blob:
        """Copy a file into the storage as a blob."""
        with self.writing() as file, source.open("rb") as reading:
            while piece := reading.read(1 << 20):
                file.write(piece)
            return self.finish(file)

    def keep(self, path: Path, sha256: str) -> None:
        """Make the bytes of a complete, checked upload, as `incoming.gathered` gave them, a blob."""
        self._objects.put(_key(sha256), path)

    def drop_temporary(self, seconds: float) -> None:
        """Delete what a process that died was writing or had pinned: untouched for so long."""
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError):  # finished or deleted meanwhile
                if time.time() - path.stat().st_mtime <= seconds:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()

    def check_writable(self) -> None:
        """Raise OSError when the storage does not take writes."""
        self._now()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of the digests that name no blob, by one listing; listings may lag, so what one lacks is asked for by itself."""
        wanted = set(digests)
        if wanted:
            wanted.difference_update(entry.name for entry in self._objects.list("blobs/"))
        return [sha256 for sha256 in sorted(wanted) if next(self._objects.list(_key(sha256)), None) is None]

    def older(self, seconds: float) -> list[Entry]:
        """The blobs that were written longer ago, by the storage's own clock."""
        found = list(self._objects.list("blobs/"))
        limit = self._now() - seconds if found else 0.0
        return [entry for entry in found if entry.modified < limit]

    def discard(self, entry: Entry) -> None:
        """Delete a blob, unless it was written again since it was listed."""
        self._objects.delete(entry.key, entry)

    def other_than(self, digests: Collection[str]) -> bool:
        """Whether there is any blob that these do not name."""
        return any(entry.name not in digests for entry in self._objects.list("blobs/"))

    def remove(self, digests: Iterable[str]) -> None:
        """Delete the blobs that these name, where they are there."""
        for sha256 in digests:
            self._objects.delete(_key(sha256))

    def _now(self) -> float:
        """The storage's own time: that of an object written now, always the same one."""
        with scratch(self._temporary) as file:
            file.write(b"flexlora")
            fsync.sync(file)
            self._objects.put(PROBE, Path(file.name))
        return next(entry.modified for entry in self._objects.list(PROBE))


def _key(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"
