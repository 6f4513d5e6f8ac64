"""The protocol of a backend that stores blobs: five methods."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class BlobEntry:
    """A stored object: its key, and when it was written, in seconds since the epoch by the storage's own clock."""

    key: str
    modified: float

    @property
    def name(self) -> str:
        """The last part of the key; of a blob, its SHA-256."""
        return self.key.rpartition("/")[2]


class BlobBackend(Protocol):
    """Objects under keys like `blobs/ab/abcd…`. A failure is an OSError, a missing object a FileNotFoundError."""

    def put(self, key: str, file: Path) -> None:
        """Store a synced file of ours as the object, atomically and durably; the file is moved or deleted."""

    def get(self, key: str, *, refetch: bool = False) -> Path:
        """A local file with the object's bytes: itself, or a copy that is kept for a while; `refetch`: not a cached copy."""

    def list(self, prefix: str) -> Iterator[BlobEntry]:
        """The objects whose keys begin with `prefix`, a folder that ends in a slash, or one whole key."""

    def delete(self, key: str, if_unchanged: BlobEntry | None = None) -> None:
        """Delete the object, if it exists; with `if_unchanged`, only if it has not been written again since."""

    def presigned_url(self, key: str) -> str | None:
        """A URL from which anyone may read the object for a limited time; None where the storage has none."""
