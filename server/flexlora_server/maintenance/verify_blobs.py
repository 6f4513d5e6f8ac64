"""Whether every blob that the database names is there, and whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flexlora_server.database.queries.blobs import named
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, Damaged, open_blobs

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


@contextmanager
def past_the_cache(settings: Settings) -> Iterator[BlobStore]:
    """The storage as it is itself, whatever copies lie here."""
    temporary = settings.data_dir / "temporary"  # what is left of one that was killed is swept there
    temporary.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=temporary, prefix="verify-") as folder:
        yield open_blobs(settings, fresh=Path(folder))


def faults(store: Store, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Every blob that the database names, hashed anew in the storage itself: its digest and what is wrong, None for nothing."""
    with past_the_cache(settings) as blobs:
        with store.reading() as tx:
            wanted = named(tx)
        for sha256 in sorted(wanted):
            yield sha256, _fault(blobs, sha256)


def _fault(blobs: BlobStore, sha256: str) -> str | None:
    try:
        blobs.whole(sha256)
    except FileNotFoundError:
        return "missing"
    except Damaged as error:
        return f"damaged: {error}"
    except OSError as error:
        return f"unreadable: {error}"
    return None
