"""Files that are being written and have no name of their own yet, and what names them in the end."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Damaged(OSError):
    """A blob has other bytes than it was stored with; the message names it."""


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


def second_name(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has such, else a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
