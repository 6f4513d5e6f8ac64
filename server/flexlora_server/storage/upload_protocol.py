"""Uploads on their way: what a storage must do with parts that come one after another, by any of several processes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code


class Incoming(Protocol):
    """The parts of uploads. `begin`, then writing, then `keep` or `undo`, then closing the file: one part."""

    def begin(self, upload: str, offset: int, check: Callable[[int], None]) -> BinaryIO:
        """A file that takes the bytes from `offset` on.

        `check` is asked once nobody else can write them, with how many there are; it must refuse fewer than `offset`.

        Raises:
            Refusal: UPLOAD_BUSY, or what `check` raises.
        """

    def keep(self, upload: str, offset: int, file: BinaryIO) -> tuple[int, str | None]:
        """Make what was written durable; where the upload ends now, and the key of the object that holds the part."""

    def undo(self, offset: int, file: BinaryIO) -> None:
        """Keep nothing of what was written."""

    def forget(self, key: str) -> None:
        """Delete the object of a part that was not acknowledged."""

    def exclusive(self, upload: str) -> AbstractContextManager[None]:
        """Keep other writers from the upload's bytes where they could change under us.

        Raises:
            Refusal: UPLOAD_BUSY.
        """

    def gathered(self, upload: str, parts: Sequence[str], sha256: str) -> AbstractContextManager[Path]:
        """All bytes of a complete upload in one synced file, also where a commit that was cut short made them a blob.

        Raises:
            FileNotFoundError: they were deleted.
        """

    def lost(self, upload: str, parts: Sequence[str], sha256: str) -> bool:
        """Whether `gathered` cannot find all bytes that were acknowledged."""

    def ids(self) -> list[str]:
        """The uploads that have bytes on their way."""

    def drop(self, upload: str) -> None:
        """Delete an upload's bytes."""


def busy() -> Refusal:
    """What a request is told that finds another one at the bytes of its upload."""
    return Refusal(
        Code.UPLOAD_BUSY, "Another request is busy with this upload; try again.", headers={"Retry-After": "1"}
    )
