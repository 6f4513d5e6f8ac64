"""Whether every blob that the database names is there, and whole."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from flexlora_server.blobs import BlobStore, digest, open_blobs
from flexlora_server.errors import StartupError
from flexlora_server.records.blobs import named
from flexlora_server.settings import Settings
from flexlora_server.store import Store

SHOWN = 5  # digests in a sentence


def check_blobs(store: Store, blobs: BlobStore) -> None:
    """Refuse to run with blobs missing. The rows are read first: what they name by then was written before.

    Raises:
        StartupError: it says which, or that the storage cannot be read.
    """
    with store.reading() as tx:
        wanted = named(tx)
    try:
        missing = blobs.missing(wanted)
    except OSError as error:
        raise StartupError(f"the storage of the blobs cannot be read: {error}") from error
    if missing:
        more = "" if len(missing) <= SHOWN else f" and {len(missing) - SHOWN} more"
        raise StartupError(
            f"{len(missing)} of {len(wanted)} blobs that the database names are missing: {', '.join(missing[:SHOWN])}{more}; "
            "put them back from a backup (`flexlora-server verify` lists all), or correct FLEXLORA_DATA_DIR or FLEXLORA_BLOBS_URL"
        )


def faults(store: Store, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Every blob that the database names, hashed anew in the storage itself: its digest and what is wrong, None for nothing."""
    with TemporaryDirectory(dir=settings.data_dir, prefix="verify-") as folder:
        blobs = open_blobs(settings, fresh=Path(folder))
        with store.reading() as tx:
            wanted = named(tx)
        for sha256 in sorted(wanted):
            yield sha256, _fault(blobs, sha256)


def _fault(blobs: BlobStore, sha256: str) -> str | None:
    try:
        found = digest(blobs.path(sha256))
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable: {error}"
    return None if found == sha256 else f"damaged: its SHA-256 is {found}"
