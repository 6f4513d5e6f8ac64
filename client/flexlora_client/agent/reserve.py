"""Room on the disk for an update before it is trained: a full disk is found before the work, not after it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flexlora_client.errors import BadInput

SPARE_BYTES = 64 << 10  # of headers and the configuration


@contextmanager
def reserved(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Hold `size` bytes in `folder` for the block, or until the function yielded is called, right before they are needed.

    Where the system cannot allocate (macOS, Windows), nothing is held.

    Raises:
        BadInput: there is no room.
    """
    path = folder / ".reserved"
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size + SPARE_BYTES)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise BadInput(
            f"{folder} has no room for an update of {size} bytes ({error.strerror}); free space, or give another --home"
        ) from None
    try:
        yield lambda: path.unlink(missing_ok=True)
    finally:
        path.unlink(missing_ok=True)
