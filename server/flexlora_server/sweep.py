"""Deletes bytes that nobody will ask for again: of uploads that ended without counting, of processes that died writing.

The rows say first that an upload is over; its bytes go later, so that no crash in between leaves a row without them.
"""

from flexlora_server.blobs import BlobStore
from flexlora_server.records import uploads
from flexlora_server.store import Store

EVERY = 30.0  # seconds between sweeps
ABANDONED = 86_400.0  # seconds after which a temporary file that nobody wrote to is nobody's


def sweep(store: Store, blobs: BlobStore) -> None:
    """Delete what is left over. Uploads are listed before their rows are read: one that begins meanwhile is not seen."""
    found = blobs.partials()
    if found:
        with store.reading() as tx:
            going_on = uploads.open_ids(tx)
        for upload in found:
            if upload not in going_on:
                blobs.drop(upload)
    blobs.drop_temporary(ABANDONED)
