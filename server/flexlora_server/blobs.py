"""The bytes: uploads on their way, and finished blobs under their SHA-256, in a local folder.

A blob appears whole or not at all: written to a temporary file, synced, renamed, and its folder synced, before any row names it.
"""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code

CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A finished blob: hexadecimal SHA-256 and size in bytes."""

    sha256: str
    size: int


class BlobStore:
    """A folder of blobs: `blobs/ab/abcd…` finished, `partial/ID` uploads on their way, `temporary/` being written."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._partial = root / "partial"
        self._temporary = root / "temporary"
        for folder in (self._blobs, self._partial, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the blob of this digest lies, or would."""
        return self._blobs / sha256[:2] / sha256

    def partial(self, upload: str) -> Path:
        """Where the bytes of an upload gather; `upload` is an id of our own making."""
        return self._partial / upload

    def received(self, upload: str, sha256: str) -> Path:
        """The bytes of a complete upload, whether or not a commit that was cut short has moved them already."""
        return self.partial(upload) if self.partial(upload).exists() else self.path(sha256)

    def partials(self) -> list[str]:
        """The uploads that have bytes on their way."""
        return [path.name for path in self._partial.iterdir()]

    def drop(self, upload: str) -> None:
        """Delete an upload's bytes."""
        self.partial(upload).unlink(missing_ok=True)

    @contextmanager
    def exclusive(self, upload: str) -> Iterator[None]:
        """Keep other requests, of any process, from writing to an upload; one whose bytes have moved needs no keeping.

        Raises:
            Refusal: UPLOAD_BUSY.
        """
        with ExitStack() as held:
            with suppress(FileNotFoundError):
                held.enter_context(hold(self.partial(upload)))
            yield

    def keep(self, upload: str, sha256: str) -> None:
        """Make a complete, checked upload a blob."""
        if self.partial(upload).exists():
            self._publish(self.partial(upload), sha256)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A new temporary file, open for writing and reading; `finish` makes it a blob, leaving the block deletes it."""
        path = self._temporary / secrets.token_hex(16)
        try:
            with path.open("x+b") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)

    def finish(self, file: BinaryIO) -> Blob:
        """Hash, sync and publish a file of `writing`."""
        file.flush()
        os.fsync(file.fileno())
        size, path = file.tell(), Path(file.name)
        sha256 = digest(path)
        self._publish(path, sha256)
        return Blob(sha256, size)

    def drop_temporary(self, seconds: float) -> None:
        """Delete what a process that died was writing: files untouched for so long."""
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError):  # finished or deleted meanwhile
                if time.time() - path.stat().st_mtime > seconds:
                    path.unlink()

    def check_writable(self) -> None:
        """Raise OSError when the storage does not take writes."""
        with self.writing() as file:
            file.write(b"flexlora")
            file.flush()
            os.fsync(file.fileno())

    def _publish(self, source: Path, sha256: str) -> None:
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        _sync_folder(target.parent)
        _sync_folder(self._blobs)


def hold(path: Path, create: bool = False) -> BinaryIO:
    """Open an upload's bytes for one request alone, among all processes on this folder, until the file is closed.

    Raises:
        Refusal: UPLOAD_BUSY.
        FileNotFoundError: nothing has arrived, or the bytes have moved or were deleted.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # moved between opening and locking
            raise busy()
        if create:
            _sync_folder(path.parent)
    except BaseException as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise busy() from None
        raise
    return file


def append(file: BinaryIO, offset: int) -> None:
    """Go on at `offset` in a file of `hold`; what was written beyond it but never acknowledged is cut off.

    Raises:
        Refusal: UPLOAD_BUSY where bytes before `offset` are not there, which must never be filled with zeros.
    """
    if file.seek(0, os.SEEK_END) < offset:
        raise busy()
    file.truncate(offset)
    file.seek(offset)


def busy() -> Refusal:
    """What a request is told that finds another one at the bytes of its upload."""
    return Refusal(
        Code.UPLOAD_BUSY, "Another request is busy with this upload; try again.", headers={"Retry-After": "1"}
    )


def digest(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
