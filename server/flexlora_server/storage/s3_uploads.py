"""Uploads on their way in an object store: an object for each part, under a name that no other writer can choose.

Nothing is locked. The row lists the parts that were acknowledged, in order; the compare-and-set on its offset decides between
writers, and the objects of those that lost are deleted, at the latest with the upload.
"""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flexlora_server.storage import fsync
from flexlora_server.storage.files import scratch
from flexlora_server.storage.s3_blobs import S3Objects
from flexlora_server.storage.upload_protocol import busy


class Parts:
    """Parts are received into local files of the folder `temporary` first."""

    def __init__(self, objects: S3Objects, temporary: Path) -> None:
        self._objects, self._temporary = objects, temporary
        self._turn, self._at_work = threading.Lock(), set[str]()

    def begin(self, upload: str, offset: int, check: Callable[[int], None]) -> BinaryIO:
        """A file of this request's own; whether the objects of earlier parts are there shows when they are gathered."""
        path = self._temporary / secrets.token_hex(16)
        file = path.open("x+b")
        path.unlink()  # it has no name from here on: nothing is left of a request that dies
        return file

    def keep(self, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        """Send the part."""
        size = file.tell()
        if size == 0:
            return offset, None
        key = f"incoming/{upload}/{offset:016d}-{secrets.token_hex(16)}"
        file.seek(0)
        self._objects.send(key, file)
        return offset + size, key

    def undo(self, offset: int, file: BinaryIO) -> None:
        """Empty the file."""
        file.seek(0)
        file.truncate()

    def forget(self, key: str) -> None:
        """Delete the object; if that fails, it goes with the upload."""
        with suppress(OSError):
            self._objects.delete(key)

    @contextmanager
    def exclusive(self, upload: str) -> Iterator[None]:
        """Objects do not change under us; once in a process, so that a repeated commit is not inspected side by side."""
        with self._turn:
            if upload in self._at_work:
                raise busy()
            self._at_work.add(upload)
        try:
            yield
        finally:
            self._at_work.discard(upload)

    @contextmanager
    def gathered(self, upload: str, parts: Sequence[str], sha256: str) -> Iterator[Path]:
        """Fetch the parts into one file."""
        with scratch(self._temporary) as file:
            for key in parts:
                self._objects.fetch(key, file)
            fsync.sync(file)
            yield Path(file.name)

    def lost(self, upload: str, parts: Sequence[str], sha256: str) -> bool:
        """Whether an object is gone."""
        return any(next(self._objects.list(key), None) is None for key in parts)

    def ids(self) -> list[str]:
        """The folders of the parts."""
        return sorted({entry.key.split("/")[1] for entry in self._objects.list("incoming/")})

    def drop(self, upload: str) -> None:
        """Delete the parts, acknowledged or not."""
        for entry in self._objects.list(f"incoming/{upload}/"):
            self._objects.delete(entry.key)
