"""The parts in which an update is uploaded: their size, bytes and digest (RFC 9530).

Parts start small and grow while they are sent fast enough. Of an interrupted part the coordinator keeps the bytes that
arrived; behind a proxy that buffers whole requests none did, so parts shrink after an interruption.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flexlora_client.errors import BadInput
from flexlora_shared.digests import digest_field

MAX_PART_BYTES = 8 << 20  # the protocol's limit
FIRST_PART_BYTES = 1 << 20
MIN_PART_BYTES = 256 << 10
TARGET_PART_S = 30.0  # a part should not take longer
ProgressCallback = Callable[[int, int], None]  # called with bytes or steps done, and their total (0: unknown)
CHUNK_BYTES = 64 << 10  # passed to the connection at once


class PartSizer:
    """Chooses the size of the next part; `bytes` holds it."""

    def __init__(self) -> None:
        self.bytes, self._max_bytes = FIRST_PART_BYTES, MAX_PART_BYTES

    def sent(self, seconds: float) -> None:
        """Record a part that was sent in so many seconds."""
        if seconds < TARGET_PART_S / 2:
            self.bytes = min(2 * self.bytes, self._max_bytes)
        elif seconds > TARGET_PART_S:
            self.cut()

    def cut(self) -> None:
        """Record a part that failed: halve the size."""
        self.bytes = max(self.bytes // 2, MIN_PART_BYTES)

    def refused(self) -> None:
        """Record a part that a proxy refused as too large: no later part is larger than the halved size."""
        self.cut()
        self._max_bytes = self.bytes


@dataclass(frozen=True)
class Part:
    """One part, held in memory, so that the bytes sent are those of its digest even if the file changes."""

    offset: int
    content: bytes

    @property
    def end(self) -> int:
        """The offset of the byte after it."""
        return self.offset + len(self.content)

    @property
    def digest(self) -> str:
        """The value of `Content-Digest`."""
        return digest_field(hashlib.sha256(self.content).digest())

    def chunks(self, on_progress: ProgressCallback, size: int) -> Iterator[bytes]:
        """The part's bytes in chunks; reports the progress within the `size` bytes of the update."""
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
