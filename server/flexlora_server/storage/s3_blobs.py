"""Blobs in an S3-compatible object store, through obstore; reads go through a local cache."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from flexlora_server.settings import Settings
from flexlora_server.storage.blob_protocol import BlobEntry
from flexlora_server.storage.cache import BlobCache

if TYPE_CHECKING:
    from obstore.store import S3Config  # not there at run time

PART_BYTES = 8 << 20  # bytes of a part of a large object
URL_LIFETIME = timedelta(hours=1)  # of a presigned URL
READ_TIMEOUT = timedelta(seconds=10)  # a store that does not answer for so long has failed
CLOCK_ROUNDING_S = 1.0  # times of one object may differ by so much: some stores list milliseconds and head seconds
_STORAGE_FULL = ("XMinioStorageFull", "QuotaExceeded", "507 ", "InsufficientStorage")


class S3Blobs:
    """A `BlobBackend` in a bucket, under a prefix."""

    def __init__(self, settings: Settings, bucket: str, prefix: str, cache: BlobCache) -> None:
        self._cache = cache
        self._store = _open(settings, bucket, prefix, settings.s3_endpoint)
        public = settings.s3_public_endpoint
        self._public = _open(settings, bucket, prefix, public) if public else None

    def put(self, key: str, file: Path) -> None:
        """Upload the file, in several parts at once where it is large; a blob stays in the cache."""
        self.send(key, file)
        if key.startswith("blobs/"):
            self._cache.adopt(key.rpartition("/")[2], file)
        else:
            file.unlink()

    def send(self, key: str, file: Path | BinaryIO) -> None:
        """Upload a copy of the file, or of the rest of an open one."""
        with _as_os_errors(key):
            obstore.put(self._store, key, file, chunk_size=PART_BYTES, max_concurrency=2)

    def get(self, key: str, *, refetch: bool = False) -> Path:
        """The copy in the cache."""
        sha256 = key.rpartition("/")[2]
        if refetch:
            self._cache.drop(sha256)
        return self._cache.get(sha256, lambda file: self.fetch(key, file))

    def fetch(self, key: str, file: BinaryIO) -> None:
        """Write the object's bytes to a file."""
        with _as_os_errors(key):
            for piece in obstore.get(self._store, key).stream(min_chunk_size=1 << 20):
                file.write(piece)

    def list(self, prefix: str) -> Iterator[BlobEntry]:
        """List the store, a thousand objects at a time."""
        with _as_os_errors(prefix):
            if not prefix.endswith("/"):
                with _ignore_missing_object():
                    yield BlobEntry(prefix, obstore.head(self._store, prefix)["last_modified"].timestamp())
                return
            for chunk in obstore.list(self._store, prefix.rstrip("/"), chunk_size=1000):
                for item in chunk:
                    yield BlobEntry(item["path"], item["last_modified"].timestamp())

    def delete(self, key: str, if_unchanged: BlobEntry | None = None) -> None:
        """Delete the object; object stores have no conditional deletion, so its time is read just before."""
        if if_unchanged is not None:
            current = next(self.list(key), None)
            if current is None or current.modified > if_unchanged.modified + CLOCK_ROUNDING_S:
                return
        with _as_os_errors(key), _ignore_missing_object():
            obstore.delete(self._store, key)
        self._cache.drop(key.rpartition("/")[2])

    def presigned_url(self, key: str) -> str | None:
        """A presigned URL at the public endpoint, where the settings name one."""
        if self._public is None:
            return None
        with _as_os_errors(key):
            return obstore.sign(self._public, "GET", key, URL_LIFETIME)


def _open(settings: Settings, bucket: str, prefix: str, endpoint: str | None) -> S3Store:
    config: S3Config = {"region": settings.s3_region, "disable_bulk_delete": True}  # some stores lack it
    if endpoint:
        config["endpoint"] = endpoint
    if settings.s3_access_key_id and settings.s3_secret_access_key:
        config["access_key_id"] = settings.s3_access_key_id
        config["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": READ_TIMEOUT,
            "timeout": timedelta(minutes=10),
        },
        retry_config={"max_retries": 3, "retry_timeout": READ_TIMEOUT},
    )


@contextmanager
def _ignore_missing_object() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise


@contextmanager
def _as_os_errors(key: str) -> Iterator[None]:
    """Raise the store's errors as the OSErrors of a file system."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):  # the settings are wrong, not the object
            raise OSError(errno.EIO, f"the object store has no such bucket: {_shortened(error)}", key) from None
        raise FileNotFoundError(errno.ENOENT, "the object store has no such object", key) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, f"the object store refuses our key: {_shortened(error)}", key) from None
    except BaseError as error:
        code = errno.ENOSPC if any(word in str(error) for word in _STORAGE_FULL) else errno.EIO
        raise OSError(code, f"the object store failed: {_shortened(error)}", key) from None


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split("\n\nDebug source")[0].split())[:500]
