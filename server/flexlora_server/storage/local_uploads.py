"""Unfinished uploads in a local folder: one file each, `partial/ID`, appended under a lock among all processes."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.upload_protocol import upload_busy


class LocalUploads:
    """An `UploadStore` in a folder. The bytes are written once: a complete file is renamed to become the blob."""

    def __init__(self, root: Path) -> None:
        self._partial, self._blobs = root / "partial", root / "blobs"
        self._partial.mkdir(parents=True, exist_ok=True)
        fsync.sync_folder(root)

    def open_part(self, upload: str, offset: int, check: Callable[[int], None]) -> BinaryIO:
        """The upload's file, held by this request alone until it is closed."""
        path = self._partial / upload
        file = lock_file(path, create=True)
        try:
            check(file.seek(0, os.SEEK_END))
            seek_to(file, offset)
            if offset == 0:  # else a previous part has made the name durable
                fsync.sync_folder(self._partial)
        except BaseException:
            if file.seek(0, os.SEEK_END) == 0:  # leave no empty file: the upload may be over
                path.unlink(missing_ok=True)
            file.close()
            raise
        return file

    def finish_part(self, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        """Sync the file."""
        fsync.sync(file)
        return file.tell(), None

    def discard_part(self, offset: int, file: BinaryIO) -> None:
        """Cut the file back."""
        seek_to(file, offset)

    def delete_part(self, key: str) -> None:
        """Nothing to do: parts are not separate objects here."""

    @contextmanager
    def lock(self, upload: str) -> Iterator[None]:
        """Lock the file; an upload whose bytes have moved needs no lock."""
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(lock_file(self._partial / upload))
            yield

    @contextmanager
    def assembled(self, upload: str, parts: Sequence[str], sha256: str) -> Iterator[Path]:
        """The file itself, or the blob that it has become."""
        partial = self._partial / upload
        yield partial if _size(partial) else self._blobs / sha256[:2] / sha256

    def is_incomplete(self, upload: str, parts: Sequence[str], sha256: str) -> bool:
        """Whether neither the file nor the blob is there."""
        return _size(self._partial / upload) + _size(self._blobs / sha256[:2] / sha256) == 0

    def upload_ids(self) -> list[str]:
        """The files' names."""
        return [path.name for path in self._partial.iterdir()]

    def delete(self, upload: str) -> None:
        """Delete the file."""
        (self._partial / upload).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """The size of a file; 0 where there is none, or a new one that is still empty."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def lock_file(path: Path, create: bool = False) -> BinaryIO:
    """Open an upload's file with an exclusive lock among all processes on this folder, until the file is closed.

    Raises:
        Refusal: UPLOAD_BUSY.
        FileNotFoundError: nothing has arrived, or the bytes have moved or were deleted.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):  # moved between opening and locking
            raise upload_busy()
    except BaseException as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise upload_busy() from None
        raise
    return file


def seek_to(file: BinaryIO, offset: int) -> None:
    """Continue at `offset` in a file of `lock_file`; unacknowledged bytes beyond it are cut off.

    Raises:
        OSError: bytes before `offset` are missing: they must never be filled with zeros.
    """
    if (length := file.seek(0, os.SEEK_END)) < offset:
        raise OSError(errno.EIO, f"of {offset} bytes acknowledged only {length} are there", file.name)
    file.truncate(offset)
    file.seek(offset)
