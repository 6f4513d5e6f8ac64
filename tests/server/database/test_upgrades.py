"""Runs that were stopped under an earlier version go on after `migrate`, and after `restore`, with the keys of their agents."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, inspect

from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance.backup import restore
from flexlora_server.maintenance.verify_blobs import check_each_blob
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from tests.support import schemas
from tests.support.kit import Clock, Participant, Served, encode, served, tensors

SCHEMAS = ("0001", "0002", "0003", "0004", "0005")
STOPPED = "stopped"  # the run of 4 rounds that was stopped in its third: one update is there, another half way
RANKS = {"one": 2, "two": 3}


def later(url: URL) -> Clock:
    """The time at which the old coordinator was stopped."""
    clock = Clock()
    last = max(row["at"] for row in schemas.rows(url)["events"])
    assert isinstance(last, datetime)
    clock.now = (last if last.tzinfo else last.replace(tzinfo=UTC)).timestamp()
    return clock


@contextmanager
def going_on(url: URL, folder: Path) -> Iterator[Served]:
    clock = later(url)
    store = Store(url, clock)
    with served(store, folder, clock) as running:
        yield running
    store.close()


def finish(running: Served, keys: dict[str, str], arrived: int) -> None:
    """Take both participants to the end of the run that was stopped; `arrived` bytes of the open upload are there."""
    spec = running.spec(STOPPED)
    both = {name: Participant(running.http, key) for name, key in keys.items()}
    for name, one in both.items():
        one.declare(STOPPED, RANKS[name])
    task, data = both["two"].task(STOPPED), encode(tensors(spec, 3, seed=33))
    assert task["round"] == 3
    upload = both["two"].announce(task, data)["id"]
    assert both["two"].call("HEAD", f"/v1/uploads/{upload}").headers["upload-offset"] == str(arrived)
    both["two"].send(upload, data, arrived)
    both["two"].commit(upload)
    assert running.work() == 2, "this round, and the one of another run that waited for a worker"
    for name, one in both.items():
        task = one.task(STOPPED)
        assert (task["round"], task["rank"]) == (4, RANKS[name])
        one.download(task)
        one.upload(task, encode(tensors(spec, RANKS[name], seed=4)))
    assert running.work() == 1
    status = running.operator.expect(200, "GET", f"/v1/runs/{STOPPED}")["status"]
    assert (status["state"], status["rounds_published"]) == ("COMPLETED", 4)
    assert all(fault is None for _, fault in check_each_blob(running.store, running.settings))
    for number in range(5):
        running.round(STOPPED, number)
        running.operator.expect(200, "GET", f"/v1/runs/{STOPPED}/rounds/{number}/record")


@pytest.mark.parametrize(
    "name", [SCHEMAS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SCHEMAS[1:-1]), SCHEMAS[-1]]
)
def test_a_run_goes_on_after_migrating(name: str, empty_database: Callable[[], URL], tmp_path: Path) -> None:
    url = empty_database()
    schemas.load(name, url)
    keys = schemas.unpack(name, url.get_backend_name(), tmp_path / "data")
    store = Store(url)
    store.migrate()
    store.close()
    with going_on(url, tmp_path / "data") as running:
        finish(running, keys, arrived=316 if name >= "0003" else 0)  # earlier ones were announced in fewer words: anew


def old_backup(name: str, url: URL, folder: Path) -> dict[str, str]:
    """A backup as `backup` writes it, of a database of schema `name` that is loaded into `url`; the participants' keys."""
    kind = url.get_backend_name()
    keys = schemas.unpack(name, kind, folder)
    schemas.load(name, url)
    if kind == "sqlite":
        shutil.copy(str(url.database), folder / "flexlora.db")
    else:
        address = url.set(drivername="postgresql").render_as_string()
        command_line = ["pg_dump", f"--dbname={address}", "--format=custom", f"--file={folder / 'database.dump'}"]
        subprocess.run(command_line, check=True)
    count = len(list((folder / "blobs").glob("*/*")))
    (folder / "backup.json").write_text(json.dumps({"database": kind, "blobs": count}))
    return keys


def check_empty(url: URL, data: Path) -> None:
    assert list((data / "blobs").glob("*/*")) == []
    if url.get_backend_name() == "sqlite":
        assert list(Path(str(url.database)).parent.glob("flexlora.db*")) == []
        return
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


# what comes after the copy is `migrate`, tried above
@pytest.mark.parametrize("name", [pytest.param(SCHEMAS[0], marks=pytest.mark.slow), SCHEMAS[-1]])
def test_a_run_goes_on_after_restoring(name: str, empty_database: Callable[[], URL], tmp_path: Path) -> None:
    keys = old_backup(name, empty_database(), tmp_path / "backup")
    url, settings = empty_database(), Settings(data_dir=tmp_path / "data")
    store = Store(url)
    restore(store, open_blobs(settings), tmp_path / "backup")
    store.close()
    with going_on(url, settings.data_dir) as running:
        finish(running, keys, arrived=0)


def test_a_restore_that_fails_leaves_nothing(
    empty_database: Callable[[], URL],
    next_schema: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "backup"
    old_backup("0001", empty_database(), folder)
    url, settings = empty_database(), Settings(data_dir=tmp_path / "data")
    store, blobs = Store(url), open_blobs(settings)

    last = sorted((folder / "blobs").glob("*/*"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(StartupError, match="damaged"):  # the others are there by then
        restore(store, blobs, folder)
    check_empty(url, settings.data_dir)
    last.write_bytes(content)

    next_schema("op.execute('SELECT nothing')")
    with pytest.raises(StartupError, match="could not be migrated"):
        restore(store, blobs, folder)
    monkeypatch.undo()
    check_empty(url, settings.data_dir)

    blobs.add(last)  # as a try leaves it that was killed
    restore(store, blobs, folder)
    store.check_head()
    store.close()
