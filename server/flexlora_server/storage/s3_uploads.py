"""Unfinished uploads in an object store: an object for each part, under a unique random name.

Nothing is locked between processes. The row lists the acknowledged parts in order; the compare-and-set on its offset decides
between writers, and the objects of the others are deleted, at the latest with the upload.
"""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.files import temporary_file
from flexlora_server.storage.s3_blobs import S3Blobs
from flexlora_server.storage.upload_protocol import upload_busy


class S3Uploads:
    """An `UploadStore` in an object store; parts are received into local files of the folder `temporary` first."""

    def __init__(self, blobs: S3Blobs, temporary: Path) -> None:
        self._blobs, self._temporary = blobs, temporary
        self._mutex, self._active = threading.Lock(), set[str]()

    def open_part(self, upload: str, offset: int, check: Callable[[int], None]) -> BinaryIO:
        """A file of this request alone; whether the objects of earlier parts exist shows in `assembled`."""
        path = self._temporary / secrets.token_hex(16)
        file = path.open("x+b")
        path.unlink()  # the file has no name from here on: nothing is left of a request that dies
        return file

    def finish_part(self, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        """Upload the part."""
        size = file.tell()
        if size == 0:
            return offset, None
        key = f"incoming/{upload}/{offset:016d}-{secrets.token_hex(16)}"
        file.seek(0)
        self._blobs.send(key, file)
        return offset + size, key

    def discard_part(self, offset: int, file: BinaryIO) -> None:
        """Empty the file."""
        file.seek(0)
        file.truncate()

    def delete_part(self, key: str) -> None:
        """Delete the object; if that fails, it is deleted with the upload."""
        with suppress(OSError):
            self._blobs.delete(key)

    @contextmanager
    def lock(self, upload: str) -> Iterator[None]:
        """Allow one commit of an upload at a time in this process; objects do not change, so no other lock is needed."""
        with self._mutex:
            if upload in self._active:
                raise upload_busy()
            self._active.add(upload)
        try:
            yield
        finally:
            self._active.discard(upload)

    @contextmanager
    def assembled(self, upload: str, parts: Sequence[str], sha256: str) -> Iterator[Path]:
        """Fetch the parts into one file."""
        with temporary_file(self._temporary) as file:
            for key in parts:
                self._blobs.fetch(key, file)
            fsync.sync(file)
            yield Path(file.name)

    def is_incomplete(self, upload: str, parts: Sequence[str], sha256: str) -> bool:
        """Whether an object is missing."""
        return any(next(self._blobs.list(key), None) is None for key in parts)

    def upload_ids(self) -> list[str]:
        """The folders of the parts."""
        return sorted({entry.key.split("/")[1] for entry in self._blobs.list("incoming/")})

    def delete(self, upload: str) -> None:
        """Delete the parts, acknowledged or not."""
        for entry in self._blobs.list(f"incoming/{upload}/"):
            self._blobs.delete(entry.key)
