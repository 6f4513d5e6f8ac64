"""The parts an update is sent in: how long each is, its bytes, its digest (RFC 9530).

Parts are short at first and grow while the line carries them. Of a part that is cut the coordinator keeps what arrived; but
behind a proxy that gathers whole requests nothing did, so a line that cuts gets shorter ones.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flexlora_client.errors import BadInput
from flexlora_shared.digests import digest_field

MAX_PART_BYTES = 8 << 20  # bytes; the protocol's limit
FIRST_PART_BYTES = 1 << 20
MIN_PART_BYTES = 256 << 10
TARGET_PART_S = 30.0  # seconds that a part should not take
ProgressCallback = Callable[[int, int], None]  # bytes or steps done so far, in all (0: not known)
CHUNK_BYTES = 64 << 10  # bytes handed to the connection at once


class PartSizer:
    """How long the next part is to be."""

    def __init__(self) -> None:
        self.bytes, self._max_bytes = FIRST_PART_BYTES, MAX_PART_BYTES

    def sent(self, seconds: float) -> None:
        """A part got through in so many seconds."""
        if seconds < TARGET_PART_S / 2:
            self.bytes = min(2 * self.bytes, self._max_bytes)
        elif seconds > TARGET_PART_S:
            self.cut()

    def cut(self) -> None:
        """A part did not get through."""
        self.bytes = max(self.bytes // 2, MIN_PART_BYTES)

    def refused(self) -> None:
        """Something between here and the coordinator takes no part as long as this: no later one will be."""
        self.cut()
        self._max_bytes = self.bytes


@dataclass(frozen=True)
class Part:
    """One part, in memory: what its digest covers is what is sent, whatever becomes of the file."""

    offset: int
    content: bytes

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + len(self.content)

    @property
    def digest(self) -> str:
        """The value of `Content-Digest`."""
        return digest_field(hashlib.sha256(self.content).digest())

    def chunks(self, on_progress: ProgressCallback, size: int) -> Iterator[bytes]:
        """The bytes as they are handed over, telling where in the `size` bytes of the update that is."""
        for begin in range(0, len(self.content), CHUNK_BYTES):
            yield self.content[begin : begin + CHUNK_BYTES]
            on_progress(min(self.offset + begin + CHUNK_BYTES, self.end), size)


def read_part(path: Path, offset: int, length: int) -> Part:
    """The `length` bytes at `offset`.

    Raises:
        BadInput: the file ends before them.
    """
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    if len(content) < length:
        raise BadInput(f"{path} became shorter while it was sent")
    return Part(offset, content)
