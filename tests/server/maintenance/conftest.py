"""Places to restore a backup to."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

from flexlora_server.database.transactions import Store
from tests.support.databases import create_database

_names = itertools.count()


@pytest.fixture
def empty_database(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Callable[[], URL]:
    """Makes the addresses of empty databases of the same kind as `store`."""

    def make() -> URL:
        if store.url.get_backend_name() == "sqlite":
            return URL.create("sqlite", database=str(tmp_path / f"restored{next(_names)}" / "flexlora.db"))
        return create_database(request.getfixturevalue("postgres_socket"), f"restored{next(_names)}")

    return make
