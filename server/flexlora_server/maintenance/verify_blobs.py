"""Checks that every blob that the database names exists and has its digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flexlora_server.database.queries.blobs import referenced_blobs
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, DamagedBlob, open_blobs

MAX_SHOWN_DIGESTS = 5  # in an error message


def check_blobs(store: Store, blobs: BlobStore) -> None:
    """Refuse to start with blobs missing. The rows are read first: blobs are written before their rows.

    Raises:
        StartupError: blobs are missing, or the storage cannot be read.
    """
    with store.reading() as tx:
        digests = referenced_blobs(tx)
    try:
        missing = blobs.missing(digests)
    except OSError as error:
        raise StartupError(f"the storage of the blobs cannot be read: {error}") from error
    if missing:
        more = "" if len(missing) <= MAX_SHOWN_DIGESTS else f" and {len(missing) - MAX_SHOWN_DIGESTS} more"
        shown = ", ".join(missing[:MAX_SHOWN_DIGESTS])
        raise StartupError(
            f"{len(missing)} of {len(digests)} blobs that the database names are missing: {shown}{more}; "
            "put them back from a backup (`flexlora-server verify` lists all), or correct FLEXLORA_DATA_DIR or FLEXLORA_BLOBS_URL"
        )


@contextmanager
def uncached_blobs(settings: Settings) -> Iterator[BlobStore]:
    """The storage without the shared cache of copies on this machine."""
    temporary = settings.data_dir / "temporary"  # what a killed process leaves there is collected as garbage
    temporary.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=temporary, prefix="verify-") as folder:
        yield open_blobs(settings, cache_folder=Path(folder))


def check_each_blob(store: Store, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Hash every blob that the database names, in the storage itself: yields its digest and its fault, None where it has none."""
    with uncached_blobs(settings) as blobs:
        with store.reading() as tx:
            digests = referenced_blobs(tx)
        for sha256 in sorted(digests):
            yield sha256, _fault(blobs, sha256)


def _fault(blobs: BlobStore, sha256: str) -> str | None:
    try:
        blobs.verified_path(sha256)
    except FileNotFoundError:
        return "missing"
    except DamagedBlob as error:
        return f"damaged: {error}"
    except OSError as error:
        return f"unreadable: {error}"
    return None
