"""What both storages must do alike."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.storage import Blob, BlobStore, DamagedBlob, fsync, open_blobs
from flexlora_server.storage.blob_protocol import BlobEntry

ABSENT = "0" * 64


def write(blobs: BlobStore, data: bytes) -> Blob:
    with blobs.writing() as file:
        file.write(data)
        return blobs.finish(file)


def test_a_blob_is_found_under_its_digest(blobs: BlobStore, settings: Settings) -> None:
    blob = write(blobs, b"some bytes")
    assert blob == Blob(hashlib.sha256(b"some bytes").hexdigest(), 10)
    assert write(blobs, b"some bytes") == blob
    for reader in (blobs, open_blobs(settings)):
        assert reader.path(blob.sha256).read_bytes() == b"some bytes"
    assert blobs.missing([ABSENT, blob.sha256]) == [ABSENT]
    assert blobs.has_other_than(())


def test_a_blob_larger_than_a_part(blobs: BlobStore, settings: Settings, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 9
    blob = write(blobs, data)
    for path in (tmp_path / "data").glob("cache/*"):
        path.unlink()
    assert blobs.path(blob.sha256).read_bytes() == data


def test_nothing_is_left_of_what_was_not_finished(blobs: BlobStore, settings: Settings) -> None:
    with blobs.writing() as file:
        file.write(b"half")
    assert list((settings.data_dir / "temporary").iterdir()) == []
    assert not blobs.has_other_than(())
    blobs.check_writable()
    assert not blobs.has_other_than(())


def test_the_absent_blob(blobs: BlobStore) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.path(ABSENT).open()
    assert blobs.missing([]) == []


def test_only_old_blobs_are_discarded_and_not_those_written_again(
    blobs: BlobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = write(blobs, b"x")
    assert blobs.older_than(3600) == []
    (seen,) = blobs.older_than(-3600)
    assert seen.name == blob.sha256
    blobs.delete_if_unchanged(
        type(seen)(seen.key, seen.modified - 86_400)
    )  # as if it had been listed before it was written anew
    assert blobs.missing([blob.sha256]) == []
    blobs.delete_if_unchanged(seen)
    assert blobs.missing([blob.sha256]) == [blob.sha256]
    with pytest.raises(FileNotFoundError):
        blobs.path(blob.sha256).open()


def send(blobs: BlobStore, upload: str, offset: int, data: bytes) -> str | None:
    with blobs.uploads.open_part(upload, offset, lambda there: None) as file:
        file.write(data)
        end, part = blobs.uploads.finish_part(upload, offset, file)
        assert end == offset + len(data)
        return part


def test_parts_add_up_to_a_blob(blobs: BlobStore, settings: Settings) -> None:
    parts = [send(blobs, "u", 0, b"first "), send(blobs, "u", 6, b"second")]
    assert blobs.uploads.upload_ids() == ["u"]
    sha256 = hashlib.sha256(b"first second").hexdigest()
    elsewhere = open_blobs(settings)
    for _ in range(2):  # the second time as after a commit that was cut short
        with elsewhere.uploads.assembled("u", [part for part in parts if part], sha256) as path:
            assert path.read_bytes() == b"first second"
            elsewhere.publish_file(path, sha256)
    elsewhere.uploads.delete("u")
    assert blobs.uploads.upload_ids() == []
    assert blobs.path(sha256).read_bytes() == b"first second"
    assert list((settings.data_dir / "temporary").iterdir()) == []


def test_a_part_that_is_undone_leaves_nothing(blobs: BlobStore) -> None:
    first = send(blobs, "u", 0, b"good")
    with blobs.uploads.open_part("u", 4, lambda there: None) as file:
        file.write(b"bad")
        blobs.uploads.discard_part(4, file)
        assert blobs.uploads.finish_part("u", 4, file) == (4, None)
    second = send(blobs, "u", 4, b"!")
    sha256 = hashlib.sha256(b"good!").hexdigest()
    with blobs.uploads.assembled("u", [part for part in (first, second) if part], sha256) as path:
        assert path.read_bytes() == b"good!"


def test_bytes_that_are_gone(blobs: BlobStore) -> None:
    part = send(blobs, "u", 0, b"x")
    blobs.uploads.delete("u")
    blobs.uploads.delete("u")
    with pytest.raises(FileNotFoundError), blobs.uploads.assembled("u", [part] if part else [], ABSENT) as path:
        path.open()


@pytest.mark.parametrize(
    "told",
    [{"s3_endpoint": "127.0.0.1:9000"}, {"s3_public_endpoint": "ftp://host"}, {"s3_access_key_id": "half"}],
    ids=str,
)
def test_settings_of_the_object_store_that_cannot_be_used(tmp_path: Path, told: dict[str, str]) -> None:
    with pytest.raises(StartupError, match="FLEXLORA_S3_"):
        open_blobs(Settings.model_validate({"data_dir": tmp_path, "blobs_url": "s3://bucket/prefix", **told}))


@pytest.mark.parametrize("url", ["bucket", "file:///tmp", "s3://", "s3:bucket"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(StartupError, match="s3://bucket/prefix"):
        open_blobs(Settings.model_validate({"data_dir": tmp_path, "blobs_url": url}))


def test_what_is_pinned_stays_whatever_the_cache_evicts(blobs: BlobStore, settings: Settings) -> None:
    blob = write(blobs, b"pinned")
    with blobs.pinned() as pin:
        path = pin(blob.sha256)
        for copy in settings.data_dir.glob("cache/*"):
            copy.unlink()
        assert path.read_bytes() == b"pinned"
        assert pin(blob.sha256) == path
        with pytest.raises(FileNotFoundError):
            pin(ABSENT).open()
    assert list((settings.data_dir / "temporary").iterdir()) == []
    left = settings.data_dir / "temporary" / "pins-of-one-that-was-killed"
    left.mkdir()
    (left / blob.sha256).write_bytes(b"pinned")
    blobs.delete_temporary(3600)
    assert left.exists()
    blobs.delete_temporary(-3600)
    assert not left.exists()
    assert blobs.path(blob.sha256).read_bytes() == b"pinned"


def test_damaged_copies_are_fetched_again_and_damaged_blobs_named(blobs: BlobStore, settings: Settings) -> None:
    blob = write(blobs, b"whole")
    path = blobs.path(blob.sha256)
    path.write_bytes(b"other")
    if settings.blobs_url is None:
        with pytest.raises(DamagedBlob, match=blob.sha256):
            blobs.verified_path(blob.sha256)
    else:
        assert blobs.verified_path(blob.sha256).read_bytes() == b"whole"


def test_a_listing_that_lags_behind_misses_nothing(
    blobs: BlobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = write(blobs, b"new")
    listed = blobs._backend.list

    def lagging(prefix: str) -> Iterator[BlobEntry]:
        return iter(()) if prefix.endswith("/") else listed(prefix)

    monkeypatch.setattr(blobs._backend, "list", lagging)
    assert blobs.missing([ABSENT, blob.sha256]) == [ABSENT]


@pytest.mark.parametrize("settings", ["local"], indirect=True)
@pytest.mark.parametrize("renamed", [False, True])
def test_a_new_folder_is_synced_before_anything_is_renamed_into_it(
    blobs: BlobStore, settings: Settings, renamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would else lose the folder, and what was moved there from a place where it was safe."""
    if renamed:  # by one who died then
        source = blobs.path(write(blobs, b"whole").sha256)
    else:
        source = settings.data_dir / "source"
        source.write_bytes(b"whole")
    target, synced = blobs.path(hashlib.sha256(b"whole").hexdigest()), list[tuple[Path, bool]]()
    monkeypatch.setattr(fsync, "sync_folder", lambda path: synced.append((path, target.exists())))
    blobs.publish_file(source, target.name)
    assert synced == [(target.parent.parent, renamed), (target.parent, True)]
