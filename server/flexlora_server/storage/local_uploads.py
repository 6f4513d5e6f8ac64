"""Uploads on their way in a local folder: one file each, `partial/ID`, appended in place under a lock of all processes."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.upload_protocol import busy


class Appending:
    """The bytes lie where they will be renamed from: they are written once."""

    def __init__(self, root: Path) -> None:
        self._partial, self._blobs = root / "partial", root / "blobs"
        self._partial.mkdir(parents=True, exist_ok=True)
        fsync.sync_folder(root)

    def begin(self, upload: str, offset: int, check: Callable[[int], None]) -> BinaryIO:
        """The upload's file, held by this request alone until it is closed."""
        path = self._partial / upload
        file = hold(path, create=True)
        try:
            check(file.seek(0, os.SEEK_END))
            append(file, offset)
            if offset == 0:  # whoever acknowledged bytes before has made the name durable
                fsync.sync_folder(self._partial)
        except BaseException:
            if file.seek(0, os.SEEK_END) == 0:  # the upload may be over, or its bytes have moved or are lost
                path.unlink(missing_ok=True)
            file.close()
            raise
        return file

    def keep(self, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        """Sync the file."""
        fsync.sync(file)
        return file.tell(), None

    def undo(self, offset: int, file: BinaryIO) -> None:
        """Cut the file back."""
        append(file, offset)

    def forget(self, key: str) -> None:
        """Parts are no objects here."""

    @contextmanager
    def exclusive(self, upload: str) -> Iterator[None]:
        """Hold the file; an upload whose bytes have moved needs no keeping."""
        with ExitStack() as held:
            with suppress(FileNotFoundError):
                held.enter_context(hold(self._partial / upload))
            yield

    @contextmanager
    def gathered(self, upload: str, parts: Sequence[str], sha256: str) -> Iterator[Path]:
        """The file itself, or the blob that it has become."""
        partial = self._partial / upload
        yield partial if _size(partial) else self._blobs / sha256[:2] / sha256

    def lost(self, upload: str, parts: Sequence[str], sha256: str) -> bool:
        """Whether neither the file nor the blob is there."""
        return _size(self._partial / upload) + _size(self._blobs / sha256[:2] / sha256) == 0

    def ids(self) -> list[str]:
        """The files' names."""
        return [path.name for path in self._partial.iterdir()]

    def drop(self, upload: str) -> None:
        """Delete the file."""
        (self._partial / upload).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Of a file; 0 where there is none, or one that a part has just made and will not fill."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


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
    except BaseException as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise busy() from None
        raise
    return file


def append(file: BinaryIO, offset: int) -> None:
    """Go on at `offset` in a file of `hold`; what was written beyond it but never acknowledged is cut off.

    Raises:
        OSError: bytes before `offset` are not there: they must never be filled with zeros.
    """
    if (length := file.seek(0, os.SEEK_END)) < offset:
        raise OSError(errno.EIO, f"of {offset} bytes acknowledged only {length} are there", file.name)
    file.truncate(offset)
    file.seek(offset)
