"""Deletes bytes that nothing refers to: of uploads that ended, of processes that died while writing, and blobs without a row.

A row is closed first and its bytes are deleted later, so that a crash in between never leaves a row without bytes. A blob is
written before the row that names it: it has a day for that, by the storage's own clock.
"""

import time

from flexlora_server.database.queries import uploads
from flexlora_server.database.queries.blobs import protected_blobs
from flexlora_server.database.transactions import Store
from flexlora_server.storage import BlobStore

INTERVAL_S = 30.0  # between collections
BLOB_INTERVAL_S = 3600.0  # between listings of all blobs
ABANDONED_AFTER_S = 86_400.0  # age from which an unwritten temporary file, or a blob without a row, is deleted


class GarbageCollector:
    """Collects garbage when the interval since the last collection has passed."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs
        self._next, self._next_listing = 0.0, time.monotonic() + INTERVAL_S

    def step(self) -> None:
        """Collect garbage, if it is time to. A collection that failed is repeated after the same interval."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL_S
            collect_uploads(self._store, self._blobs)
        if now >= self._next_listing:
            self._next_listing = now + BLOB_INTERVAL_S
            collect_blobs(self._store, self._blobs)


def collect_garbage(store: Store, blobs: BlobStore, *, min_blob_age: float = ABANDONED_AFTER_S) -> None:
    """Delete everything that nothing refers to; blobs without a row only from an age of `min_blob_age` seconds."""
    collect_uploads(store, blobs)
    collect_blobs(store, blobs, min_blob_age=min_blob_age)


def collect_uploads(store: Store, blobs: BlobStore) -> None:
    """Delete the bytes of uploads that are over, and old temporary files.

    Uploads are listed before their rows are read, so that one that begins meanwhile is not touched.
    """
    upload_ids = blobs.uploads.upload_ids()
    if upload_ids:
        with store.reading() as tx:
            open_ids = uploads.open_ids(tx)
        for upload in upload_ids:
            if upload not in open_ids:
                blobs.uploads.delete(upload)
    blobs.delete_temporary(ABANDONED_AFTER_S)


def collect_blobs(store: Store, blobs: BlobStore, *, min_blob_age: float = ABANDONED_AFTER_S) -> None:
    """Delete old blobs that no row names.

    Blobs are listed before the rows are read: what a row names by then stays, and what is written again is young.
    """
    old = blobs.older_than(min_blob_age)
    if old:
        with store.reading() as tx:
            claimed = protected_blobs(tx)
        for entry in old:
            if entry.name not in claimed:
                blobs.delete_if_unchanged(entry)
