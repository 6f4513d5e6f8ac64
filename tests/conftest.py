"""Fixtures of all tests: migrated databases of both kinds, and a real coordinator on a real socket."""

import gc
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import URL

from flexlora_server.database.transactions import Store
from tests.support.databases import create_database, drop_database, migrated_sqlite, postgres_cluster, postgres_programs
from tests.support.kit import Clock, Served, served

_databases = itertools.count()
# an example may take as long as a busy machine needs; scripts/test-slow tries as many as are thorough
hypothesis.settings.register_profile("tests", deadline=None, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300)
hypothesis.settings.load_profile("tests")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of a kernel that it lacks, as PEFT imports it
gc.disable()  # until everything is imported: what is made then stays


def pytest_collection_finish() -> None:
    """Never again look through the objects of PyTorch and the like: that would take a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[Path]:
    """A PostgreSQL cluster with a migrated database named `migrated` to copy from."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_cluster(programs) as socket:
        store = Store(create_database(socket, "migrated"))
        store.migrate()
        store.close()
        yield socket


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A migrated, empty database of each kind in turn."""
    if request.param == "sqlite":
        yield migrated_sqlite(tmp_path)
        return
    socket: Path = request.getfixturevalue("postgres_socket")
    name = f"test{next(_databases)}"
    yield create_database(socket, name, "migrated")
    drop_database(socket, name)


@pytest.fixture
def clock() -> Clock:
    """The coordinator's time; it stands still unless the test moves it."""
    return Clock()


@pytest.fixture
def store(database_url: URL, clock: Clock) -> Iterator[Store]:
    """The door to a migrated, empty database of each kind in turn."""
    opened = Store(database_url, clock)
    yield opened
    opened.close()


@pytest.fixture
def coordinator(store: Store, clock: Clock, tmp_path: Path) -> Iterator[Served]:
    """A running coordinator on each kind of database in turn."""
    with served(store, tmp_path / "data", clock) as running:
        yield running
