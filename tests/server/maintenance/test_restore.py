"""A restore that fails, or meets another, leaves the database and the storage as they were."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from flexlora_server.database.queries.blobs import referenced_blobs
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance.backup import backup, restore
from flexlora_server.maintenance.verify_blobs import check_each_blob
from flexlora_server.settings import Settings
from flexlora_server.storage import Blob, BlobStore, open_blobs
from tests.support.databases import ON_SQLITE
from tests.support.kit import Served


@pytest.fixture
def folder(coordinator: Served, tmp_path: Path) -> Path:
    """A backup of three blobs."""
    participant, task, data = coordinator.working()
    participant.upload(task, data)
    assert backup(coordinator.store, coordinator.blobs, tmp_path / "backup") == 3
    return tmp_path / "backup"


@pytest.fixture
def target(empty_database: Callable[[], URL]) -> Iterator[Store]:
    """The empty database to restore to."""
    store = Store(empty_database())
    yield store
    store.close()


@pytest.fixture
def elsewhere(coordinator: Served, tmp_path: Path) -> Settings:
    """Settings with an empty data folder."""
    return coordinator.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})


def first_blob(folder: Path) -> Path:
    return min((folder / "blobs").glob("*/*"))


def tables(url: URL) -> list[str]:
    engine = create_engine(url)
    try:
        return inspect(engine).get_table_names()
    finally:
        engine.dispose()


def check_whole(store: Store, settings: Settings) -> None:
    assert [fault for _, fault in check_each_blob(store, settings)] == [None] * 3


def before_each(monkeypatch: pytest.MonkeyPatch, blobs: BlobStore, act: Callable[[Path], object]) -> None:
    """Act each time before a blob is restored; `act` gets its path in the backup."""
    add = blobs.add

    def add_after(source: Path) -> Blob:
        act(source)
        return add(source)

    monkeypatch.setattr(blobs, "add", add_after)


def test_a_damaged_backup_costs_no_blob_that_was_there(coordinator: Served, folder: Path, target: Store) -> None:
    path = first_blob(folder)
    content = path.read_bytes()
    path.unlink()  # not written in place: it is another name of the original
    path.write_bytes(content[:-1])
    with pytest.raises(StartupError, match=f"blob {path.name} is damaged: nothing was restored"):
        restore(target, coordinator.blobs, folder)
    check_whole(coordinator.store, coordinator.settings)
    path.write_bytes(content)
    assert restore(target, coordinator.blobs, folder) == 3, "onto the blobs of the coordinator whose database was lost"
    check_whole(target, coordinator.settings)


def test_what_was_restored_before_a_failure_is_deleted_again(
    coordinator: Served, folder: Path, target: Store, next_schema: Callable[[str], None], tmp_path: Path
) -> None:
    lost = first_blob(folder).name
    coordinator.blobs.delete([lost])
    with coordinator.store.reading() as tx:
        digests = referenced_blobs(tx)
    next_schema(f"open({str(tmp_path / 'mended')!r}).close()")
    with pytest.raises(FileNotFoundError):
        restore(target, coordinator.blobs, folder)
    assert coordinator.blobs.missing(digests) == [lost]
    assert tables(target.url) == []
    (tmp_path / "mended").touch()
    assert restore(target, coordinator.blobs, folder) == 3, "and migrates the older backup"
    check_whole(target, coordinator.settings)


def test_a_database_that_cannot_be_copied_in(folder: Path, target: Store, elsewhere: Settings) -> None:
    blobs = open_blobs(elsewhere)
    copy = next(path for path in folder.iterdir() if path.name in ("flexlora.db", "database.dump"))
    content = copy.read_bytes()
    copy.write_bytes(b"no database" * 99)
    with pytest.raises(StartupError, match=r"cannot be copied|pg_restore failed"):
        restore(target, blobs, folder)
    assert not blobs.has_other_than(())
    assert target.url.get_backend_name() != "sqlite" or not Path(str(target.url.database)).exists()
    copy.write_bytes(content)
    assert restore(target, blobs, folder) == 3
    check_whole(target, elsewhere)


def test_a_second_restore_at_the_same_time_is_refused(
    folder: Path, target: Store, elsewhere: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, blobs = Store(target.url), open_blobs(elsewhere)
    refused: list[Path] = []

    def restore_too(source: Path) -> None:
        with pytest.raises(StartupError, match="another `flexlora-server restore` into this place is under way"):
            restore(second, open_blobs(elsewhere), folder)
        refused.append(source)

    before_each(monkeypatch, blobs, restore_too)
    assert restore(target, blobs, folder) == 3
    assert len(refused) == 3
    with pytest.raises(StartupError, match="not empty"):
        restore(second, open_blobs(elsewhere), folder)
    second.close()
    check_whole(target, elsewhere)


def test_a_database_that_is_created_meanwhile_stays(
    folder: Path, target: Store, elsewhere: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, other = open_blobs(elsewhere), Store(target.url)
    before_each(monkeypatch, blobs, lambda source: other.migrate())
    with pytest.raises(StartupError, match="not empty: nothing was restored"):
        restore(target, blobs, folder)
    other.check_head()
    other.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_blob_is_deleted_once_another_restore_may_have_begun(
    folder: Path, target: Store, elsewhere: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_blobs(elsewhere)

    def end_connection(source: Path) -> None:
        with target.transaction() as tx:
            tx.session.execute(text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))

    before_each(monkeypatch, blobs, end_connection)
    with pytest.raises(OperationalError):
        restore(target, blobs, folder)
    assert blobs.missing(path.name for path in folder.glob("blobs/*/*")) == []
    assert restore(target, open_blobs(elsewhere), folder) == 3, "over what was left"
    check_whole(target, elsewhere)


@ON_SQLITE
def test_a_blob_that_is_read_differently_the_second_time(
    folder: Path, target: Store, elsewhere: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_blobs(elsewhere)

    def damage(source: Path) -> None:
        source.unlink()
        source.write_bytes(b"other bytes")

    before_each(monkeypatch, blobs, damage)
    with pytest.raises(StartupError, match="damaged"):
        restore(target, blobs, folder)
    assert not blobs.has_other_than(())
