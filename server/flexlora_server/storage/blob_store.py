"""The storage as the other rooms use it: finished blobs by their SHA-256, temporary files, and unfinished uploads."""

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
from flexlora_server.storage.blob_protocol import BlobBackend, BlobEntry
from flexlora_server.storage.files import DamagedBlob, digest, link_or_copy, temporary_file
from flexlora_server.storage.upload_protocol import UploadStore

PROBE_KEY = "probe/written"  # of the object that is written to learn the storage's time and whether it takes writes
PIN_ATTEMPTS = 3  # a cached copy may be evicted before it is pinned
log = logging.getLogger("flexlora.blobs")


@dataclass(frozen=True)
class Blob:
    """A finished blob: hexadecimal SHA-256 and size in bytes."""

    sha256: str
    size: int


class BlobStore:
    """Blobs in `backend`, unfinished uploads in `uploads`, temporary files in the folder `temporary`."""

    def __init__(self, backend: BlobBackend, uploads: UploadStore, temporary: Path) -> None:
        self.uploads = uploads
        self._backend, self._temporary = backend, temporary
        temporary.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """A local file of the blob: itself, or a copy that stays for some minutes; `pinned` keeps it longer.

        Raises:
            FileNotFoundError: an object store has no such blob; for a local folder, opening the path raises it.
        """
        return self._backend.get(_key(sha256))

    def verified_path(self, sha256: str) -> Path:
        """As `path`, after hashing the file; a cached copy with other bytes is fetched again.

        Raises:
            DamagedBlob: the storage itself holds other bytes.
            FileNotFoundError: there is no such blob.
        """
        path = self.path(sha256)
        if digest(path) != sha256:
            path = self._backend.get(_key(sha256), refetch=True)
            if (actual := digest(path)) != sha256:
                raise DamagedBlob(f"the storage holds other bytes under {sha256}: their SHA-256 is {actual}")
        return path

    @contextmanager
    def pinned(self) -> Iterator[Callable[[str], Path]]:
        """A function like `path` whose files stay until the end of the block, or after a crash for a day."""
        folder = self._temporary / f"pins-{secrets.token_hex(16)}"
        folder.mkdir()
        try:
            yield lambda sha256: self._pin(sha256, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _pin(self, sha256: str, folder: Path) -> Path:
        pinned = folder / sha256
        for attempts_left in reversed(range(PIN_ATTEMPTS)):
            try:
                if not pinned.exists():
                    link_or_copy(self.path(sha256), pinned)
                break
            except FileNotFoundError:  # no such blob, or a copy that was evicted before it was pinned
                if not attempts_left:
                    raise
        return pinned

    @contextmanager
    def protect_from_collection(self, digests: Iterable[str]) -> Iterator[None]:
        """Wraps the transaction that names new blobs: what the garbage collector deletes meanwhile is put back.

        It may have listed an older blob of the same bytes, and object stores have no conditional deletion.
        """
        with self.pinned() as pin:
            pinned = {sha256: pin(sha256) for sha256 in digests}
            yield
            for sha256, path in pinned.items():
                try:
                    if next(self._backend.list(_key(sha256)), None) is None:
                        self._backend.put(_key(sha256), path)
                except OSError as error:  # the row is committed and cannot be undone; the blob is most likely there
                    log.warning("it could not be seen that the blob %s is still in the storage: %s", sha256, error)

    def presigned_url(self, sha256: str) -> str | None:
        """A URL from which anyone may read the blob for a limited time, where the storage has such."""
        return self._backend.presigned_url(_key(sha256))

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A new temporary file, open for writing and reading; `finish` makes it a blob, leaving the block deletes it."""
        with temporary_file(self._temporary) as file:
            yield file

    def finish(self, file: BinaryIO) -> Blob:
        """Hash, sync and publish a file of `writing`."""
        fsync.sync(file)
        size, path = file.tell(), Path(file.name)
        sha256 = digest(path)
        self._backend.put(_key(sha256), path)
        return Blob(sha256, size)

    def add(self, source: Path) -> Blob:
        """Copy a file into the storage as a blob."""
        with self.writing() as file, source.open("rb") as reading:
            while piece := reading.read(1 << 20):
                file.write(piece)
            return self.finish(file)

    def publish_file(self, path: Path, sha256: str) -> None:
        """Make the checked file of `uploads.assembled` a blob."""
        self._backend.put(_key(sha256), path)

    def delete_temporary(self, seconds: float) -> None:
        """Delete temporary files and pins of dead processes: untouched for so many seconds."""
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
        self._storage_time()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """The digests without a blob. One listing finds most; listings may lag, so the others are looked up one by one."""
        absent = set(digests)
        if absent:
            absent.difference_update(entry.name for entry in self._backend.list("blobs/"))
        return [sha256 for sha256 in sorted(absent) if next(self._backend.list(_key(sha256)), None) is None]

    def older_than(self, seconds: float) -> list[BlobEntry]:
        """The blobs that were written more than so many seconds ago, by the storage's own clock."""
        entries = list(self._backend.list("blobs/"))
        limit = self._storage_time() - seconds if entries else 0.0
        return [entry for entry in entries if entry.modified < limit]

    def delete_if_unchanged(self, entry: BlobEntry) -> None:
        """Delete a blob, unless it was written again since it was listed."""
        self._backend.delete(entry.key, entry)

    def has_other_than(self, digests: Collection[str]) -> bool:
        """Whether there is any blob with another digest."""
        return any(entry.name not in digests for entry in self._backend.list("blobs/"))

    def delete(self, digests: Iterable[str]) -> None:
        """Delete the blobs with these digests, if they exist."""
        for sha256 in digests:
            self._backend.delete(_key(sha256))

    def _storage_time(self) -> float:
        """The storage's own time: the modification time of the probe object, written now."""
        with temporary_file(self._temporary) as file:
            file.write(b"flexlora")
            fsync.sync(file)
            self._backend.put(PROBE_KEY, Path(file.name))
        return next(entry.modified for entry in self._backend.list(PROBE_KEY))


def _key(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"
