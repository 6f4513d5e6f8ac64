"""Local files: temporary ones, digests, hard links."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class DamagedBlob(OSError):
    """The bytes of a blob do not have its digest; the message names it."""


@contextmanager
def temporary_file(folder: Path) -> Iterator[BinaryIO]:
    """A new file in the folder, open for writing and reading; deleted at the end unless it was moved."""
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


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source` where the file system has such, else a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
