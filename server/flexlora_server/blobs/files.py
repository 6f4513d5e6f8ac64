"""Files that are being written and have no name of their own yet, and what names them in the end."""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def scratch(folder: Path) -> Iterator[BinaryIO]:
    """A new file in the folder, open for writing and reading, deleted on leaving unless it was moved."""
    path = folder / secrets.token_hex(16)
    try:
        with path.open("x+b") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
