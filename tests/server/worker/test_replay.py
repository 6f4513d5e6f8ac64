"""A round's record and its files give the bytes that were published, without the coordinator; or it is said where not."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import select
from typer.testing import CliRunner, Result

from flexlora_server.database.schema import RoundInput, Upload
from flexlora_server.errors import StartupError
from flexlora_server.maintenance.commands import app
from flexlora_server.worker.replay import replay
from flexlora_shared.messages.records import RoundRecord
from tests.support.command import call
from tests.support.databases import ON_SQLITE
from tests.support.kit import OPERATOR_KEY, Participant, Served, encode, served_on_sqlite, tensors
from tests.support.playing import NAMES, play

Record = dict[str, Any]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Record]]:
    """The blobs of a run that was played, and the records of its rounds; its coordinator is gone."""
    folder = tmp_path_factory.mktemp("played")
    with served_on_sqlite(folder) as coordinator:
        play(coordinator, NAMES, "flexlora-residual")
        path = "/v1/runs/run/rounds/{}/record"
        records = {number: coordinator.operator.expect(200, "GET", path.format(number)) for number in range(4)}
    return folder / "coordinator" / "blobs", records


@pytest.fixture
def blobs(played: tuple[Path, dict[int, Record]], tmp_path: Path) -> Path:
    """The files in a flat folder, which a test may spoil."""
    folder = tmp_path / "files"
    folder.mkdir()
    for path in played[0].glob("*/*"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture
def records(played: tuple[Path, dict[int, Record]]) -> dict[int, Record]:
    return played[1]


def replayed(record: Record, folder: Path) -> Result:
    """The command's answer, for a record written beside the folder."""
    file = folder.parent / "record.json"
    file.write_text(json.dumps(record))
    return CliRunner().invoke(app, ["replay", str(file), str(folder)])


def parsed(record: Record) -> RoundRecord:
    return RoundRecord.model_validate_json(json.dumps(record))


def test_every_round_gives_the_same_bytes(played: tuple[Path, dict[int, Record]], tmp_path: Path) -> None:
    """Round 0; late updates, filters with past norms; tied singular values."""
    folder, records = played
    assert {one["staleness"] for one in records[2]["inputs"]} == {0, 1}
    assert len(records[3]["past_norms"]) == 2
    for number, record in records.items():
        assert replay(parsed(record), folder, threads=2).faults == ()
        assert record["round"] == number
    told = replayed(records[2], folder)
    assert (told.exit_code, told.stdout) == (
        0,
        f"The same bytes: round 2 of run run is reproduced, SHA-256 {records[2]['published']}.\n",
    )


def test_nobody_is_named(records: dict[int, Record]) -> None:
    text = json.dumps(records[2])
    assert not any(name in text for name in NAMES)
    assert "client" not in json.dumps(records[2]["inputs"])
    assert all("metrics" not in one["update"] or not one["update"]["metrics"] for one in records[2]["inputs"])
    assert sum(one["weight"] for one in records[2]["inputs"]) == pytest.approx(1, abs=1e-15)
    assert [one["update"]["sha256"] for one in records[2]["inputs"]] == sorted(
        one["update"]["sha256"] for one in records[2]["inputs"]
    )


def test_a_changed_byte_is_found(records: dict[int, Record], blobs: Path) -> None:
    sha256 = records[2]["inputs"][1]["update"]["sha256"]
    data = bytearray((blobs / sha256).read_bytes())
    data[-1] ^= 1
    (blobs / sha256).write_bytes(data)
    told = replayed(records[2], blobs)
    assert told.exit_code == 1
    assert f"Update 2 of {len(records[2]['inputs'])} is damaged: {blobs / sha256} has SHA-256 " in told.stdout
    assert told.stdout.endswith("So round 2 of run run is not reproduced.\n")


def test_what_is_missing_is_named(records: dict[int, Record], blobs: Path) -> None:
    """All of it; the published file itself is not needed."""
    record, late = records[2], next(one for one in records[2]["inputs"] if one["staleness"])
    (blobs / record["published"]).unlink()
    assert replay(parsed(record), blobs).faults == ()
    (blobs / record["inputs"][0]["update"]["sha256"]).unlink()
    (blobs / late["base"]).unlink()
    told = replayed(record, blobs)
    assert told.exit_code == 1
    assert "Update 1 of" in told.stdout
    assert told.stdout.count(" is missing, SHA-256 ") == 2
    assert late["base"] in told.stdout


def test_another_weight_is_found_and_where(records: dict[int, Record], blobs: Path) -> None:
    record = json.loads(json.dumps(records[3]))
    one, other = record["inputs"][:2]
    one["weight"], other["weight"] = other["weight"], one["weight"]
    record["software"]["torch"] = "2.0"
    told = replayed(record, blobs)
    assert told.exit_code == 1
    assert "Module layers.0.q_proj differs first: lora_A by up to" in told.stdout
    assert f"torch 2.0 (here {torch.__version__})" in told.stdout
    (blobs / record["published"]).unlink()
    assert "where it differs cannot be told" in replayed(record, blobs).stdout


def test_a_published_file_of_other_numbers_is_compared(records: dict[int, Record], blobs: Path) -> None:
    """As another version of torch would have made it: one number of the second module is one step away."""
    record = json.loads(json.dumps(records[1]))
    named = load_file(blobs / record["published"])
    name = "layers.0.up_proj.Bt"
    named[name][0, 0] = torch.nextafter(named[name][0, 0], torch.tensor(1e9))
    save_file(named, blobs / "other")
    record["published"] = hashlib.sha256((blobs / "other").read_bytes()).hexdigest()
    (blobs / "other").rename(blobs / record["published"])
    faults = replay(parsed(record), blobs).faults
    assert any(fault.startswith("module layers.0.up_proj differs first: lora_A by up to 0,") for fault in faults)
    assert any("the versions are the recorded ones" in fault for fault in faults)


@pytest.mark.parametrize("changed", ["name of a module", "what was served", "what was published", "no inputs"])
def test_a_record_that_contradicts_its_files(records: dict[int, Record], blobs: Path, changed: str) -> None:
    record = json.loads(json.dumps(records[2]))
    upload = record["inputs"][0]["update"]["sha256"]
    if changed == "name of a module":
        record["spec"]["modules"][0]["name"] = "another"
    elif changed == "no inputs":
        record["inputs"] = []
    else:
        record["previous" if changed == "what was served" else "published"] = upload
    told = replayed(record, blobs)
    assert isinstance(told.exception, StartupError)
    assert "round 2 of run run cannot be aggregated again: the record does not fit the files" in str(told.exception)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{}", "is no record of this version"), ("no JSON", "is no record of this version"), (None, "cannot read")],
)
def test_what_is_no_record(tmp_path: Path, content: str | None, sentence: str) -> None:
    file = tmp_path / "record"
    if content is not None:
        file.write_text(content)
    told = CliRunner().invoke(app, ["replay", str(file), str(tmp_path)])
    assert sentence in str(told.exception)


@ON_SQLITE
def test_a_round_that_an_earlier_version_froze_keeps_its_order(coordinator: Served) -> None:
    """By client id, which may be any order: here the one that is not the digests'."""
    run = coordinator.run(min_clients=2, rounds=1)
    pair = [coordinator.enroll(name) for name in ("one", "two")]
    for member in pair:
        member.declare("run", 4)
    for seed, member in enumerate(pair):
        member.upload(member.task("run"), encode(tensors(run, 4, seed=seed)))
    with coordinator.store.transaction() as tx:
        frozen = tx.session.scalars(select(RoundInput).order_by(RoundInput.position)).all()
        by_content = [tx.session.get_one(Upload, row.upload_id).sha256 for row in frozen]
        ids = [row.upload_id for row in frozen]
        for row in frozen:
            tx.session.delete(row)
        tx.session.flush()
        tx.session.add_all(
            RoundInput(round_id=frozen[0].round_id, position=at, upload_id=upload, staleness=0)
            for at, upload in enumerate(reversed(ids))
        )
    assert by_content == sorted(by_content)
    assert coordinator.work() == 1
    record = parsed(coordinator.operator.expect(200, "GET", "/v1/runs/run/rounds/1/record"))
    assert [one.update.sha256 for one in record.inputs] == by_content[::-1]
    assert replay(record, coordinator.settings.data_dir).faults == ()


@ON_SQLITE
def test_the_operator_exports_it(coordinator: Served, tmp_path: Path) -> None:
    participant, task, data = coordinator.working(rank=4, rounds=1)
    participant.upload(task, data)
    assert coordinator.work() == 1
    file = tmp_path / "folder" / "record.json"
    env = {**os.environ, "FLEXLORA_URL": coordinator.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
    told = call("export", "run", "--record", file, "--json", env=env)
    record = json.loads(file.read_text())
    assert told.json == {"run": "run", "round": 1, "sha256": record["published"], "record": str(file)}
    assert replay(parsed(record), coordinator.settings.data_dir).faults == ()
    assert record["software"]["torch"] == torch.__version__
    _who_may_not_and_when(coordinator, participant)


def _who_may_not_and_when(coordinator: Served, participant: Participant) -> None:
    participant.problem("forbidden", "GET", "/v1/runs/run/rounds/1/record")
    coordinator.operator.problem("round-not-found", "GET", "/v1/runs/run/rounds/2/record")
    coordinator.operator.problem("run-not-found", "GET", "/v1/runs/none/rounds/1/record")
    coordinator.run("second")
    coordinator.operator.problem("adapter-not-published", "GET", "/v1/runs/second/rounds/1/record")
