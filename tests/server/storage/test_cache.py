"""Local copies: bounded, verified, and safe to use while they go."""

import hashlib
import mmap
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from flexlora_server.storage import fsync
from flexlora_server.storage.cache import BlobCache

BLOBS = {hashlib.sha256(data).hexdigest(): data for data in (b"a" * 100, b"b" * 100, b"c" * 100)}


def get(cache: BlobCache, sha256: str) -> Path:
    def fetch(file: BinaryIO) -> None:
        file.write(BLOBS[sha256])

    return cache.get(sha256, fetch)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache, (first, second, third) = BlobCache(tmp_path, 250, grace=0.0), BLOBS
    for used, sha256 in enumerate((first, second)):
        os.utime(get(cache, sha256), (used, used))
    get(cache, first)  # used again
    get(cache, third)
    assert {path.name for path in tmp_path.iterdir()} == {first, third}


def test_a_mapped_copy_outlives_its_file_and_a_fresh_one_stays(tmp_path: Path) -> None:
    cache, (first, second, _) = BlobCache(tmp_path, 0), BLOBS
    path = get(cache, first)
    get(cache, second)
    assert path.exists(), "what was used just now stays, whatever the bound"
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    path.unlink()
    assert mapped[:] == BLOBS[first]


def test_other_bytes_are_no_copy(tmp_path: Path) -> None:
    sha256 = next(iter(BLOBS))

    def other(file: BinaryIO) -> None:
        file.write(b"other")

    with pytest.raises(OSError, match="other bytes"):
        BlobCache(tmp_path, 1000).get(sha256, other)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256, steps = next(iter(BLOBS)), list[str]()
    sync, sync_folder = fsync.sync, fsync.sync_folder

    def syncing(file: BinaryIO) -> None:
        steps.append(f"file {(tmp_path / sha256).exists()}")
        sync(file)

    def syncing_folder(path: Path) -> None:
        steps.append(f"folder {(path / sha256).exists()}")
        sync_folder(path)

    monkeypatch.setattr(fsync, "sync", syncing)
    monkeypatch.setattr(fsync, "sync_folder", syncing_folder)
    get(BlobCache(tmp_path, 1000), sha256)
    assert steps == ["file False", "folder True"]
