"""The check at the start, `verify`, and a backup that is taken while the coordinator runs and put back elsewhere."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL
from typer.testing import CliRunner

from flexlora_server.app import create_app
from flexlora_server.database.queries.blobs import referenced_blobs
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance.backup import backup, restore
from flexlora_server.maintenance.commands import app
from flexlora_server.maintenance.verify_blobs import check_each_blob
from flexlora_server.storage import open_blobs
from flexlora_server.worker.garbage_collector import collect_garbage
from tests.support.kit import Clock, Participant, Served, encode, part, served, tensors


def blob_path(coordinator: Served, sha256: str) -> Path:
    return coordinator.settings.data_dir / "blobs" / sha256[:2] / sha256


def test_a_coordinator_does_not_start_with_a_blob_missing(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    sha256 = participant.upload(task, data)["sha256"]
    create_app(coordinator.settings, coordinator.store)
    path = blob_path(coordinator, sha256)
    path.rename(path.with_suffix(".away"))
    with pytest.raises(StartupError, match=f"1 of 3 blobs .* missing: {sha256}; put them back"):
        create_app(coordinator.settings, coordinator.store)
    path.with_suffix(".away").rename(path)
    create_app(coordinator.settings, coordinator.store)


def test_verify_lists_what_is_missing_or_damaged(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    participant, task, data = coordinator.working()
    sha256 = participant.upload(task, data)["sha256"]
    monkeypatch.setenv("FLEXLORA_DATA_DIR", str(coordinator.settings.data_dir))
    monkeypatch.setenv("FLEXLORA_DATABASE_URL", coordinator.store.url.render_as_string(hide_password=False))
    whole = CliRunner().invoke(app, ["verify"])
    assert (whole.exit_code, whole.output) == (0, "3 blobs checked, 0 missing or damaged.\n")
    blob_path(coordinator, sha256).write_bytes(b"damaged")
    blob_path(coordinator, task["adapter"]["sha256"]).unlink()
    found = CliRunner().invoke(app, ["verify"])
    assert found.exit_code == 1
    assert f"{sha256}: damaged" in found.output
    assert f"{task['adapter']['sha256']}: missing" in found.output
    assert "3 blobs checked, 2 missing or damaged." in found.output


def test_a_backup_of_a_running_coordinator_goes_on_elsewhere(
    coordinator: Served, empty_database: Callable[[], URL], clock: Clock, tmp_path: Path
) -> None:
    first, task, data = _two(coordinator)
    receipt = first[0].upload(task[0], data)
    open_ = first[1].announce(task[1], data, examples=3)["id"]
    first[1].expect(204, "PATCH", f"/v1/uploads/{open_}", headers=part(data[:99], 0), content=data[:99])
    folder = tmp_path / "backup"
    count = backup(coordinator.store, coordinator.blobs, folder)
    with pytest.raises(StartupError, match="not empty"):
        backup(coordinator.store, coordinator.blobs, folder)
    first[1].send(open_, data, 99)  # the first coordinator goes on
    first[1].commit(open_)

    store = Store(empty_database(), clock)
    settings = coordinator.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    assert restore(store, open_blobs(settings), folder) == count
    assert all(fault is None for _, fault in check_each_blob(store, settings))
    with store.reading() as tx:
        assert len(referenced_blobs(tx)) == count
    with pytest.raises(StartupError, match="not empty"):
        restore(store, open_blobs(settings), folder)
    with served(store, settings.data_dir, clock) as restored:
        for participant in first:
            participant.http = restored.http
        assert first[0].commit(receipt["upload_id"]) == receipt
        assert first[1].call("HEAD", f"/v1/uploads/{open_}").headers["upload-offset"] == "0"
        first[1].send(open_, data)
        first[1].commit(open_)
        assert restored.work() == 1
        assert restored.round("run", 1)["summary"]["state"] == "PUBLISHED"
    store.close()


def _two(coordinator: Served) -> tuple[list[Participant], list[dict[str, object]], bytes]:
    run = coordinator.run(min_clients=2, min_updates=2, rounds=1)
    both = [coordinator.enroll(name) for name in ("one", "two")]
    for participant in both:
        participant.declare("run", 8)
    return both, [participant.task("run") for participant in both], encode(tensors(run, 8))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_backups_that_are_not_put_back(coordinator: Served, empty_database: Callable[[], URL], tmp_path: Path) -> None:
    coordinator.working()
    folder = tmp_path / "backup"
    backup(coordinator.store, coordinator.blobs, folder)
    store = Store(empty_database())
    settings = coordinator.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    blobs = open_blobs(settings)
    manifest = (folder / "backup.json").read_text()
    (folder / "backup.json").unlink()
    with pytest.raises(StartupError, match="no whole backup"):
        restore(store, blobs, folder)
    (folder / "backup.json").write_text(json.dumps(json.loads(manifest) | {"database": "postgresql"}))
    with pytest.raises(StartupError, match="must be the same"):
        restore(store, blobs, folder)
    (folder / "backup.json").write_text(manifest)
    path = next((folder / "blobs").glob("*/*"))
    content = path.read_bytes()
    path.unlink()  # not written in place: it may be another name of the original
    with pytest.raises(StartupError, match="holds 1 blobs where 2"):
        restore(store, blobs, folder)
    path.write_bytes(content[:-1])
    with pytest.raises(StartupError, match="damaged"):
        restore(store, blobs, folder)
    store.close()


def test_collecting_garbage_deletes_blobs_without_a_row_and_no_other(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    participant.upload(task, data)
    with coordinator.blobs.writing() as file:
        file.write(b"of a worker that died before its row")
        lost = coordinator.blobs.finish(file)
    with coordinator.store.reading() as tx:
        wanted = referenced_blobs(tx)
    collect_garbage(coordinator.store, coordinator.blobs)
    assert blob_path(coordinator, lost.sha256).exists(), "its row may come yet"
    before = blob_path(coordinator, lost.sha256).stat().st_mtime - 86_401
    os.utime(blob_path(coordinator, lost.sha256), (before, before))
    collect_garbage(coordinator.store, coordinator.blobs)
    assert not blob_path(coordinator, lost.sha256).exists()
    collect_garbage(coordinator.store, coordinator.blobs, min_blob_age=-10)
    assert coordinator.blobs.missing(wanted) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_damaged_blob_is_not_backed_up(coordinator: Served, tmp_path: Path) -> None:
    participant, task, data = coordinator.working()
    sha256 = participant.upload(task, data)["sha256"]
    blob_path(coordinator, sha256).write_bytes(b"damaged")
    folder = tmp_path / "backup"
    folder.mkdir(mode=0o755)
    with pytest.raises(StartupError, match=f"the blob {sha256} is damaged or missing"):
        backup(coordinator.store, coordinator.blobs, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (folder / "backup.json").exists()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_cannot_be_read_is_one_sentence(
    coordinator: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*given: object) -> object:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(sqlite3, "connect", damaged)
    with pytest.raises(StartupError, match=r"cannot be copied .*malformed"):
        backup(coordinator.store, coordinator.blobs, tmp_path / "backup")
