"""Atomic file writes, digests, and syncing files and folders to disk."""

import hashlib
import os
import secrets
from pathlib import Path

from flexlora_client.errors import BadInput


def sha256_of(path: Path) -> str:
    """The file's SHA-256, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path, mode: int = 0o777) -> Path:
    """Create `path` with its parents where missing.

    Raises:
        BadInput: it cannot be created.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot create the folder {path}: {error.strerror}") from None
    return path


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace the content of `path` atomically: readers, also after a crash, see the old file or the new one.

    Raises:
        BadInput: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from None


def sync_file(path: Path) -> None:
    """Sync the file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Sync the folder's entries to disk, where the system can."""
    if os.name == "nt":  # no such call there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
