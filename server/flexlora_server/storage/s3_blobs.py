"""Blobs in an S3-compatible object store, by obstore; what is read is a copy in the cache."""

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
from flexlora_server.storage.blob_protocol import Entry
from flexlora_server.storage.cache import Cache

if TYPE_CHECKING:
    from obstore.store import S3Config  # not there at run time

CHUNK = 8 << 20  # bytes of a part of a large object
VALID = timedelta(hours=1)  # how long a link can be followed
PATIENCE = timedelta(seconds=10)  # after which a store that does not answer is not asked again
ROUNDED = 1.0  # seconds by which the times of one object differ: some stores list milliseconds and head whole seconds
_FULL = ("XMinioStorageFull", "QuotaExceeded", "507 ", "InsufficientStorage")


class S3Objects:
    """Objects of a bucket, under a prefix."""

    def __init__(self, settings: Settings, bucket: str, prefix: str, cache: Cache) -> None:
        self._cache = cache
        self._store = _open(settings, bucket, prefix, settings.s3_endpoint)
        public = settings.s3_public_endpoint
        self._public = _open(settings, bucket, prefix, public) if public else None

    def put(self, key: str, file: Path) -> None:
        """Send the file, in several parts at once where it is large; a blob stays in the cache."""
        self.send(key, file)
        if key.startswith("blobs/"):
            self._cache.adopt(key.rpartition("/")[2], file)
        else:
            file.unlink()

    def send(self, key: str, file: Path | BinaryIO) -> None:
        """Make a copy of the file, or of the rest of an open one, the object."""
        with _as_os_errors(key):
            obstore.put(self._store, key, file, chunk_size=CHUNK, max_concurrency=2)

    def get(self, key: str, *, anew: bool = False) -> Path:
        """The copy in the cache."""
        sha256 = key.rpartition("/")[2]
        if anew:
            self._cache.drop(sha256)
        return self._cache.get(sha256, lambda file: self.fetch(key, file))

    def fetch(self, key: str, file: BinaryIO) -> None:
        """Write the object's bytes to a file."""
        with _as_os_errors(key):
            for piece in obstore.get(self._store, key).stream(min_chunk_size=1 << 20):
                file.write(piece)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Ask the store, a thousand at a time."""
        with _as_os_errors(prefix):
            if not prefix.endswith("/"):
                with _absent():
                    yield Entry(prefix, obstore.head(self._store, prefix)["last_modified"].timestamp())
                return
            for chunk in obstore.list(self._store, prefix.rstrip("/"), chunk_size=1000):
                for found in chunk:
                    yield Entry(found["path"], found["last_modified"].timestamp())

    def delete(self, key: str, seen: Entry | None = None) -> None:
        """Delete the object; stores have no deletion on condition, so its age is asked for just before."""
        if seen is not None:
            now = next(self.list(key), None)
            if now is None or now.modified > seen.modified + ROUNDED:
                return
        with _as_os_errors(key), _absent():
            obstore.delete(self._store, key)
        self._cache.drop(key.rpartition("/")[2])

    def link(self, key: str) -> str | None:
        """A presigned address at the public endpoint, where the settings name one."""
        if self._public is None:
            return None
        with _as_os_errors(key):
            return obstore.sign(self._public, "GET", key, VALID)


def _open(settings: Settings, bucket: str, prefix: str, endpoint: str | None) -> S3Store:
    config: S3Config = {"region": settings.s3_region, "disable_bulk_delete": True}  # not every store has it
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
            "read_timeout": PATIENCE,
            "timeout": timedelta(minutes=10),
        },
        retry_config={"max_retries": 3, "retry_timeout": PATIENCE},
    )


@contextmanager
def _absent() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise


@contextmanager
def _as_os_errors(key: str) -> Iterator[None]:
    """Say what failed as the file system would."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):  # the place is wrong, not the object
            raise OSError(errno.EIO, f"the object store has no such bucket: {_told(error)}", key) from None
        raise FileNotFoundError(errno.ENOENT, "the object store has no such object", key) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, f"the object store refuses our key: {_told(error)}", key) from None
    except BaseError as error:
        code = errno.ENOSPC if any(word in str(error) for word in _FULL) else errno.EIO
        raise OSError(code, f"the object store failed: {_told(error)}", key) from None


def _told(error: Exception) -> str:
    return " ".join(str(error).split("\n\nDebug source")[0].split())[:500]
