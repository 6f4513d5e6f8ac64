"""Deletes bytes that nobody will ask for again: of uploads that ended without counting, of processes that died writing,
and blobs that no row names.

The rows say first that an upload is over; its bytes go later, so that no crash in between leaves a row without them. A blob is
written before the row that names it: it has a day for that, by the storage's own clock.
"""

import time

from flexlora_server.database.queries import blobs as claims
from flexlora_server.database.queries import uploads
from flexlora_server.database.transactions import Store
from flexlora_server.storage import BlobStore

EVERY = 30.0  # seconds between sweeps
RARELY = 3600.0  # seconds between listings of all blobs
ABANDONED = 86_400.0  # seconds after which a temporary file that nobody wrote to is nobody's, and a blob without a row


class Sweeper:
    """Sweeps when it is time to."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs
        self._next, self._next_listing = 0.0, time.monotonic() + EVERY

    def step(self) -> None:
        """Sweep, if it is time to. One that failed comes again after the same while."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY
            sweep_incoming(self._store, self._blobs)
        if now >= self._next_listing:
            self._next_listing = now + RARELY
            sweep_blobs(self._store, self._blobs)


def sweep(store: Store, blobs: BlobStore, *, unclaimed: float = ABANDONED) -> None:
    """Delete all that is left over; blobs that no row names after `unclaimed` seconds."""
    sweep_incoming(store, blobs)
    sweep_blobs(store, blobs, unclaimed=unclaimed)


def sweep_incoming(store: Store, blobs: BlobStore) -> None:
    """Uploads are listed before their rows are read: one that begins meanwhile is not seen."""
    found = blobs.incoming.ids()
    if found:
        with store.reading() as tx:
            going_on = uploads.open_ids(tx)
        for upload in found:
            if upload not in going_on:
                blobs.incoming.drop(upload)
    blobs.drop_temporary(ABANDONED)


def sweep_blobs(store: Store, blobs: BlobStore, *, unclaimed: float = ABANDONED) -> None:
    """Blobs are listed before the rows are read: what a row names by then stays, what is written again is young."""
    old = blobs.older(unclaimed)
    if old:
        with store.reading() as tx:
            claimed = claims.claimed(tx)
        for entry in old:
            if entry.name not in claimed:
                blobs.discard(entry)
