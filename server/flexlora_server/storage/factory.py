"""Opens the storage that the settings ask for: a local folder or an object store."""

from pathlib import Path
from urllib.parse import urlsplit

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.storage.blob_store import BlobStore
from flexlora_server.storage.cache import BlobCache
from flexlora_server.storage.local_blobs import LocalBlobs
from flexlora_server.storage.local_uploads import LocalUploads


def open_blobs(settings: Settings, *, cache_folder: Path | None = None) -> BlobStore:
    """The storage; with `cache_folder`, an object store is read into that folder instead of the shared cache.

    Raises:
        StartupError: FLEXLORA_BLOBS_URL or another setting of the object store cannot be used.
    """
    root = settings.data_dir
    if settings.blobs_url is None:
        return BlobStore(LocalBlobs(root), LocalUploads(root), root / "temporary")
    from flexlora_server.storage.s3_blobs import S3Blobs
    from flexlora_server.storage.s3_uploads import S3Uploads  # only where it is used: it imports a large library

    url = urlsplit(settings.blobs_url)
    if url.scheme != "s3" or not url.netloc:
        raise StartupError(f"FLEXLORA_BLOBS_URL is {settings.blobs_url!r}; it must look like s3://bucket/prefix")
    _check_s3_settings(settings)
    temporary = root / "temporary"
    cache = (
        BlobCache(root / "cache", settings.cache_bytes)
        if cache_folder is None
        else BlobCache(cache_folder, 0, grace=0.0)
    )
    blobs = S3Blobs(settings, url.netloc, url.path.strip("/"), cache)
    return BlobStore(blobs, S3Uploads(blobs, temporary), temporary)


def _check_s3_settings(settings: Settings) -> None:
    """Refuse settings that would otherwise fail at the first request."""
    if (settings.s3_access_key_id is None) != (settings.s3_secret_access_key is None):
        raise StartupError(
            "FLEXLORA_S3_ACCESS_KEY_ID and FLEXLORA_S3_SECRET_ACCESS_KEY belong together: set both or none"
        )
    for name, endpoint in (("ENDPOINT", settings.s3_endpoint), ("PUBLIC_ENDPOINT", settings.s3_public_endpoint)):
        url = urlsplit(endpoint or "https://unset")
        if url.scheme not in ("http", "https") or not url.netloc:
            raise StartupError(
                f"FLEXLORA_S3_{name} is {endpoint!r}; it must look like https://host or http://host:port"
            )
