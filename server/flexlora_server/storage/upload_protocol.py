"""The protocol of a store of unfinished uploads, whose parts arrive one after another in any of several processes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code


class UploadStore(Protocol):
    """The parts of uploads. One part: `open_part`, writing, `finish_part` or `discard_part`, closing the file."""

    def open_part(self, upload: str, offset: int, check: Callable[[int], None]) -> BinaryIO:
        """A file that takes the bytes from `offset` on.

        `check` is called with the number of bytes stored, once nobody else can write them; it must refuse fewer than `offset`.

        Raises:
            Refusal: UPLOAD_BUSY, or what `check` raises.
        """

    def finish_part(self, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        """Make the written bytes durable; the new end of the upload, and the key of the object that holds the part, if any."""

    def discard_part(self, offset: int, file: BinaryIO) -> None:
        """Drop the written bytes."""

    def delete_part(self, key: str) -> None:
        """Delete the object of a part that was not acknowledged."""

    def lock(self, upload: str) -> AbstractContextManager[None]:
        """Keep other writers from bytes of the upload that could otherwise change.

        Raises:
            Refusal: UPLOAD_BUSY.
        """

    def assembled(self, upload: str, parts: Sequence[str], sha256: str) -> AbstractContextManager[Path]:
        """All bytes of a complete upload in one synced file, also where an interrupted commit has made them a blob.

        Raises:
            FileNotFoundError: they were deleted.
        """

    def is_incomplete(self, upload: str, parts: Sequence[str], sha256: str) -> bool:
        """Whether some of the acknowledged bytes are missing, so that `assembled` would fail."""

    def upload_ids(self) -> list[str]:
        """The uploads that have bytes here."""

    def delete(self, upload: str) -> None:
        """Delete an upload's bytes."""


def upload_busy() -> Refusal:
    """The refusal of a request while another one writes to the same upload."""
    return Refusal(
        Code.UPLOAD_BUSY, "Another request is busy with this upload; try again.", headers={"Retry-After": "1"}
    )
