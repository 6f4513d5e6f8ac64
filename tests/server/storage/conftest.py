"""Both storages, each empty: a local folder, and an object store that is mocked over HTTP."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, open_blobs
from tests.support.objectstore import ObjectStore, object_store

_prefixes = itertools.count()


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """One object store for all tests: each has a prefix of its own."""
    pytest.importorskip("moto", reason="moto is not installed (scripts/setup installs it)")
    with object_store() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return f"test{next(_prefixes)}"


@pytest.fixture(params=["local", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Settings:
    told: dict[str, object] = {"data_dir": tmp_path / "data"}
    if request.param == "s3":
        store: ObjectStore = request.getfixturevalue("s3")
        told |= store.settings(prefix)
    return Settings.model_validate(told)


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)
