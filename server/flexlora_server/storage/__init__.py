"""Storage of bytes: unfinished uploads, and finished blobs under their SHA-256, in a local folder or an object store.

A blob appears whole or not at all: written to a temporary file, synced, hashed, checked and published, before any row names it.
"""

from flexlora_server.storage.blob_store import Blob, BlobStore
from flexlora_server.storage.factory import open_blobs
from flexlora_server.storage.files import DamagedBlob, digest

__all__ = ["Blob", "BlobStore", "DamagedBlob", "digest", "open_blobs"]
