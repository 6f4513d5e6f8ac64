"""What all tests of the simulation share."""

from collections.abc import Iterator
from functools import cache

import pytest

from flexlora_simulation import simulate


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Made base models lie in a folder of the test run, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _described_once() -> Iterator[None]:
    """Describing the model takes as long as a small federation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(simulate.__globals__, "describe", cache(simulate.__globals__["describe"]))
        yield
