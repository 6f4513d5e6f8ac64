"""Backs up the database and all blobs of a running coordinator, and restores a backup into an empty one.

The database is copied first, then every blob that the copy names: blobs never change, and the garbage collector deletes none that
a row names, nor one younger than a day. The manifest is written last: a backup without it is incomplete.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.database.schema import Upload
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance import database_copy
from flexlora_server.storage import BlobStore, DamagedBlob, digest, fsync
from flexlora_server.storage.files import link_or_copy

MANIFEST = "backup.json"


def backup(store: Store, blobs: BlobStore, folder: Path) -> int:
    """Copy the database and blobs into a new or empty folder; the number of blobs. `blobs` comes from `uncached_blobs`.

    Raises:
        StartupError: the folder is not empty, the database cannot be copied, or a blob is damaged or missing.
        OSError: a blob cannot be read, or the folder not written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StartupError(f"the folder {folder} is not empty; name a new one for each backup")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # it holds what the database holds; also for an existing folder
    digests = database_copy.copy_out(store, folder)
    for sha256 in sorted(digests):
        target = folder / "blobs" / sha256[:2] / sha256
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(blobs, sha256, target)
    _sync_below(folder)
    kind = store.url.get_backend_name()
    with (folder / MANIFEST).open("xb") as file:
        file.write(json.dumps({"database": kind, "blobs": len(digests)}).encode())
        fsync.sync(file)
    fsync.sync_folder(folder)
    fsync.sync_folder(folder.parent)
    return len(digests)


def _copy(blobs: BlobStore, sha256: str, target: Path) -> None:
    try:
        link_or_copy(blobs.verified_path(sha256), target)
    except (DamagedBlob, FileNotFoundError) as error:
        raise StartupError(
            f"the blob {sha256} is damaged or missing, the backup is not whole: {error}; `flexlora-server verify` lists all "
            "such, put them back from an earlier backup"
        ) from error


def _sync_below(folder: Path) -> None:
    for subfolder, _, names in os.walk(folder):
        for name in names:
            with Path(subfolder, name).open("rb") as file:
                fsync.sync(file)
        fsync.sync_folder(Path(subfolder))


def restore(store: Store, blobs: BlobStore, folder: Path) -> int:
    """Restore a backup into an empty database and storage, blobs first; the number of blobs. A failure leaves both as they were.

    The storage may hold blobs of this backup: of the coordinator that it is of, or of a restore that was killed.

    Raises:
        StartupError: it is no whole backup, of another kind of database, or damaged; the place is not empty or being restored.
        OSError, SQLAlchemyError: the storage or the database failed.
    """
    count = _expected_blobs(store.url.get_backend_name(), folder)
    paths = sorted((folder / "blobs").glob("*/*"))
    digests = {path.name for path in paths}
    with database_copy.restoring(store.url) as is_empty:
        if not is_empty() or blobs.has_other_than(digests):
            raise _not_empty()
        _check_blobs(paths, count)
        present = digests.difference(blobs.missing(digests))
        _restore_all(store, blobs, folder, paths, present, is_empty)
    return len(paths)


def _expected_blobs(kind: str, folder: Path) -> int:
    """The number of blobs that the manifest names, after a check that the backup is whole and of this kind of database."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise StartupError(f"{folder} holds no whole backup: {MANIFEST} is missing or cannot be read") from None
    if manifest["database"] != kind:
        raise StartupError(
            f"the backup is of {manifest['database']}, FLEXLORA_DATABASE_URL is of {kind}: they must be the same"
        )
    return int(manifest["blobs"])


def _not_empty() -> StartupError:
    return StartupError("the database or the storage is not empty: nothing was restored; name an empty place for both")


def _check_blobs(paths: list[Path], count: int) -> None:
    if len(paths) != count:
        raise StartupError(f"the backup holds {len(paths)} blobs where {count} were copied; use another backup")
    for path in paths:
        if digest(path) != path.name:
            raise _damaged(path)


def _damaged(path: Path) -> StartupError:
    return StartupError(f"the backup's blob {path.name} is damaged: nothing was restored; use another backup")


def _restore_all(
    store: Store, blobs: BlobStore, folder: Path, paths: list[Path], present: set[str], is_empty: Callable[[], bool]
) -> None:
    """Restore blobs, then the database; after a failure the database is cleared if it was copied, and new blobs are deleted."""
    written: set[str] = set()
    copied = False
    try:
        for path in paths:
            _restore_blob(blobs, path, written)
        if not is_empty():  # copying the blobs may have taken hours
            raise _not_empty()
        database_copy.copy_in(store.url, folder)
        copied = True
        store.migrate()
        with store.transaction() as tx:  # unfinished uploads are in no backup: agents send them again
            tx.session.execute(update(Upload).where(Upload.state == "OPEN").values(offset=0, parts=None))
    except BaseException:
        store.close()
        if copied:
            database_copy.clear(store.url)
        # Where the connection is lost, another restore may have begun, and rows that are there now may name these blobs: then the
        # garbage collector deletes those that nothing names.
        with suppress(SQLAlchemyError):
            if is_empty():
                blobs.delete(written - present)
        raise


def _restore_blob(blobs: BlobStore, path: Path, written: set[str]) -> None:
    written.add(path.name)  # before it is: a failure may follow its publication
    stored = blobs.add(path).sha256
    written.add(stored)
    if stored != path.name:  # the disk gave other bytes than a moment before
        raise _damaged(path)
