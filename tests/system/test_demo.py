"""The demo's driver on the demo's own model: one round, and the tables a visitor reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.cluster import ENVIRONMENT
from demo.run import RANKS
from flexlora_server.database.queries import runs
from flexlora_server.database.transactions import Store
from flexlora_server.lifecycle.round_record import read_record
from tests.support.databases import sqlite_url

pytestmark = pytest.mark.slow


def test_one_round(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "demo.run", "--rounds", "1", "--folder", str(folder)]
    environment = {**os.environ, **ENVIRONMENT, "NO_COLOR": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    participants, _, mix = done.stdout.partition("Global adapter: a mix of all tasks")
    assert "Participants: held-out data of their own, served at their own rank" in participants
    table = participants.partition("Participants: held-out data")[2]
    for rank in RANKS:
        assert re.search(rf"│\s+{rank}\s+│", table), f"the participant of rank {rank} is in the table\n{table}"
        assert re.search(rf"│\s+{rank}\s+│.*%", mix), f"the adapter of rank {rank} is in the table\n{mix}"
        assert participants.count(f"rank {rank:>2} ") >= 4, "its steps were shown as they came"
    assert "completed" in participants
    largest = folder / "exported" / f"rank-{RANKS[-1]}"
    assert f"they lie in {folder / 'exported'}" in mix.replace("\n", "")
    assert {path.name for path in largest.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.json",
    }
    log = (folder / "coordinator.log").read_text()
    assert "Traceback" not in log, log
    check_replayed(folder / "coordinator", environment)


def check_replayed(data: Path, environment: dict[str, str]) -> None:
    """Another process aggregates its round again, from a record and the files that are left: the same bytes."""
    store = Store(sqlite_url(data / "flexlora.db"))
    with store.reading() as tx:
        record = read_record(tx, runs.list_all(tx)[0].name, 1)
    store.close()
    (data / "record.json").write_text(record.model_dump_json())
    command = [sys.executable, "-m", "flexlora_server.cli", "replay", str(data / "record.json"), str(data / "blobs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("The same bytes: round 1 of run ")
    assert len(record.inputs) == 4
