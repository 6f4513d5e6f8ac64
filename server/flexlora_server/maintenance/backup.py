"""Backs up the database and all blobs of a running coordinator, and restores a backup into an empty one.

The database is copied first, then every blob that the copy names: blobs never change, and the garbage collector deletes none that
a row names, nor one younger than a day. The manifest is written last: a backup without it is incomplete.
"""

import json
import os
from pathlib import Path

from sqlalchemy import update

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
    """Restore a backup into an empty database and storage, blobs first; the number of blobs. Both are emptied if it fails.

    Raises:
        StartupError: it is no whole backup, of another kind of database, damaged, or the place is not empty.
        OSError, SQLAlchemyError: the storage or the database failed.
    """
    kind = store.url.get_backend_name()
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise StartupError(f"{folder} holds no whole backup: {MANIFEST} is missing or cannot be read") from None
    if manifest["database"] != kind:
        raise StartupError(
            f"the backup is of {manifest['database']}, FLEXLORA_DATABASE_URL is of {kind}: they must be the same"
        )
    paths = sorted((folder / "blobs").glob("*/*"))
    digests = {path.name for path in paths}
    # blobs of this same backup may be left of a restore that was killed
    if not database_copy.is_empty(store.url) or blobs.has_other_than(digests):
        raise StartupError(
            "the database or the storage is not empty: nothing was restored; name an empty place for both"
        )
    if len(paths) != manifest["blobs"]:
        raise StartupError(
            f"the backup holds {len(paths)} blobs where {manifest['blobs']} were copied; use another backup"
        )
    try:
        _restore_all(store, blobs, folder, paths)
    except BaseException:
        store.close()
        try:
            database_copy.clear(store.url)
        finally:
            blobs.delete(digests)
        raise
    return len(paths)


def _restore_all(store: Store, blobs: BlobStore, folder: Path, paths: list[Path]) -> None:
    for path in paths:
        _restore_blob(blobs, path)
    database_copy.copy_in(store.url, folder)
    store.migrate()
    with store.transaction() as tx:  # unfinished uploads are in no backup: agents send them again
        tx.session.execute(update(Upload).where(Upload.state == "OPEN").values(offset=0, parts=None))


def _restore_blob(blobs: BlobStore, path: Path) -> None:
    if digest(path) != path.name:
        raise StartupError(f"the backup's blob {path.name} is damaged; use another backup")
    blobs.add(path)
