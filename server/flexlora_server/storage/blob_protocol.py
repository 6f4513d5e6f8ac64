"""What a storage of blobs must do: five methods."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """An object and when it was written, in seconds since the epoch by the storage's own clock."""

    key: str
    modified: float

    @property
    def name(self) -> str:
        """The last part of the key; of a blob, its SHA-256."""
        return self.key.rpartition("/")[2]


class Objects(Protocol):
    """Objects under keys like `blobs/ab/abcd…`. What fails is an OSError, what is not there a FileNotFoundError."""

    def put(self, key: str, file: Path) -> None:
        """Make a synced file of ours the object, whole or not at all, and durable; the file is gone then."""

    def get(self, key: str, *, anew: bool = False) -> Path:
        """A local file of the object's bytes: itself, or a copy that is kept for a while; `anew`: not one that lies here."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """The objects whose keys begin with `prefix`, a folder that ends in a slash, or one whole key."""

    def delete(self, key: str, seen: Entry | None = None) -> None:
        """Delete the object, where there is one; with `seen`, only if it has not been written again since."""

    def link(self, key: str) -> str | None:
        """An address from which anyone may read the object for a while; None where the storage has none."""
