"""Copies all that a coordinator holds while it runs, and puts a copy back into an empty place.

The database first, then every blob that the copy names: blobs never change, and the sweep deletes none that a row names, nor one
younger than a day. The last file written says that the backup is whole.
"""

import json
import os
from pathlib import Path

from sqlalchemy import update

from flexlora_server.database.schema import Upload
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance import database_copy
from flexlora_server.storage import BlobStore, Damaged, digest, fsync
from flexlora_server.storage.files import second_name

MANIFEST = "backup.json"


def backup(store: Store, blobs: BlobStore, folder: Path) -> int:
    """Copy database and blobs into a new or empty folder; how many blobs. `blobs` is the storage `past_the_cache`.

    Raises:
        StartupError: the folder is not empty, the database cannot be copied, or a blob is damaged or missing.
        OSError: a blob cannot be read, or the folder not written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StartupError(f"the folder {folder} is not empty; name a new one for each backup")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # it holds all that the database does: also where the folder was there before
    wanted = database_copy.copy_out(store, folder)
    for sha256 in sorted(wanted):
        target = folder / "blobs" / sha256[:2] / sha256
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(blobs, sha256, target)
    _sync_below(folder)
    kind = store.url.get_backend_name()
    with (folder / MANIFEST).open("xb") as file:
        file.write(json.dumps({"database": kind, "blobs": len(wanted)}).encode())
        fsync.sync(file)
    fsync.sync_folder(folder)
    fsync.sync_folder(folder.parent)
    return len(wanted)


def _copy(blobs: BlobStore, sha256: str, target: Path) -> None:
    try:
        second_name(blobs.whole(sha256), target)
    except (Damaged, FileNotFoundError) as error:
        raise StartupError(
            f"the blob {sha256} is damaged or missing, the backup is not whole: {error}; `flexlora-server verify` lists all "
            "such, put them back from an earlier backup"
        ) from error


def _sync_below(folder: Path) -> None:
    for inside, _, names in os.walk(folder):
        for name in names:
            with Path(inside, name).open("rb") as file:
                fsync.sync(file)
        fsync.sync_folder(Path(inside))


def restore(store: Store, blobs: BlobStore, folder: Path) -> int:
    """Put a backup into an empty database and an empty storage, blobs first; how many blobs. Both are emptied where it fails.

    Raises:
        StartupError: it is no whole backup, of another kind of database, damaged, or the place is not empty.
        OSError, SQLAlchemyError: the storage or the database failed.
    """
    kind = store.url.get_backend_name()
    try:
        told = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise StartupError(f"{folder} holds no whole backup: {MANIFEST} is missing or cannot be read") from None
    if told["database"] != kind:
        raise StartupError(
            f"the backup is of {told['database']}, FLEXLORA_DATABASE_URL is of {kind}: they must be the same"
        )
    found = sorted((folder / "blobs").glob("*/*"))
    digests = {path.name for path in found}
    # blobs of this very backup are left of a try that was killed
    if not database_copy.is_empty(store.url) or blobs.other_than(digests):
        raise StartupError(
            "the database or the storage is not empty: nothing was restored; name an empty place for both"
        )
    if len(found) != told["blobs"]:
        raise StartupError(f"the backup holds {len(found)} blobs where {told['blobs']} were copied; use another backup")
    try:
        _put_all_back(store, blobs, folder, found)
    except BaseException:
        store.close()
        try:
            database_copy.clear(store.url)
        finally:
            blobs.remove(digests)
        raise
    return len(found)


def _put_all_back(store: Store, blobs: BlobStore, folder: Path, found: list[Path]) -> None:
    for path in found:
        _put_back(blobs, path)
    database_copy.copy_in(store.url, folder)
    store.migrate()
    with store.transaction() as tx:  # bytes on their way are in no backup: their senders begin them anew
        tx.session.execute(update(Upload).where(Upload.state == "OPEN").values(offset=0, parts=None))


def _put_back(blobs: BlobStore, path: Path) -> None:
    if digest(path) != path.name:
        raise StartupError(f"the backup's blob {path.name} is damaged; use another backup")
    blobs.add(path)
