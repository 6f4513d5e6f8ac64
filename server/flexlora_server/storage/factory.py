"""Opens the storage that the settings name."""

from pathlib import Path
from urllib.parse import urlsplit

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.storage.blob_store import BlobStore
from flexlora_server.storage.cache import Cache
from flexlora_server.storage.local_blobs import LocalObjects
from flexlora_server.storage.local_uploads import Appending


def open_blobs(settings: Settings, *, fresh: Path | None = None) -> BlobStore:
    """The storage; with `fresh`, an object store is read into that folder, whatever copies lie in the cache.

    Raises:
        StartupError: FLEXLORA_BLOBS_URL or another setting of the object store cannot be used.
    """
    root = settings.data_dir
    if settings.blobs_url is None:
        return BlobStore(LocalObjects(root), Appending(root), root / "temporary")
    from flexlora_server.storage.s3_blobs import S3Objects
    from flexlora_server.storage.s3_uploads import Parts  # only where it is used: it brings a big library

    url = urlsplit(settings.blobs_url)
    if url.scheme != "s3" or not url.netloc:
        raise StartupError(f"FLEXLORA_BLOBS_URL is {settings.blobs_url!r}; it must look like s3://bucket/prefix")
    _check(settings)
    temporary = root / "temporary"
    cache = Cache(root / "cache", settings.cache_bytes) if fresh is None else Cache(fresh, 0, grace=0.0)
    objects = S3Objects(settings, url.netloc, url.path.strip("/"), cache)
    return BlobStore(objects, Parts(objects, temporary), temporary)


def _check(settings: Settings) -> None:
    """What would only show at the first request otherwise."""
    if (settings.s3_access_key_id is None) != (settings.s3_secret_access_key is None):
        raise StartupError(
            "FLEXLORA_S3_ACCESS_KEY_ID and FLEXLORA_S3_SECRET_ACCESS_KEY belong together: set both or none"
        )
    for name, told in (("ENDPOINT", settings.s3_endpoint), ("PUBLIC_ENDPOINT", settings.s3_public_endpoint)):
        url = urlsplit(told or "https://unset")
        if url.scheme not in ("http", "https") or not url.netloc:
            raise StartupError(f"FLEXLORA_S3_{name} is {told!r}; it must look like https://host or http://host:port")
