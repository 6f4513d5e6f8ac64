"""`flexlora-server` as a process: what it loads, and what it says where the extra `worker` is not installed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from tests.support.kit import OPERATOR_KEY, Clock, Served

MAIN = "from flexlora_server.cli import main; main()"
WITHOUT = f"import sys; sys.modules |= dict.fromkeys(('torch', 'safetensors')); {MAIN}"  # as if they were not installed


@contextmanager
def serving(settings: Settings, log: Path) -> Iterator[str]:
    """The address of a coordinator without workers; every module that its process imports is written to `log`."""
    command = [sys.executable, "-X", "importtime", "-c", MAIN, "serve"]
    own = {"FLEXLORA_DATA_DIR": str(settings.data_dir), "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
    env = os.environ | own | {"FLEXLORA_PORT": "0", "FLEXLORA_WORKERS": "0"}
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_a_served_run_loads_no_torch(tmp_path: Path) -> None:
    """Neither at the start nor by any call of a round: inspection, slices, page and figures do without."""
    settings = Settings.model_validate({"data_dir": tmp_path, "operator_key": OPERATOR_KEY, "aggregation_threads": 1})
    store = Store(settings.url)
    store.migrate()
    with serving(settings, tmp_path / "log") as url, httpx2.Client(base_url=url, timeout=60) as http:
        site = Served(url, store, settings, Clock(), http)
        participant, task, data = site.working()
        participant.upload(task, data)
        assert site.work() == 1
        assert participant.expect(200, "GET", "/v1/runs/run/rounds/1/adapter-config?rank=4")["r"] == 4
        assert participant.call("GET", "/v1/runs/run/rounds/1/adapter?rank=4").status_code == 200
        for page in ("/", "/metrics", "/readyz"):
            assert site.operator.call("GET", page).status_code == 200
    store.close()
    lines = (tmp_path / "log").read_text().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert {"flexlora_server.adapter_files.slicing", "fastapi"} <= imported
    assert imported & {"torch", "safetensors", "transformers"} == set()


@pytest.mark.parametrize(
    ("command", "begin", "end"),
    [
        ("worker", "", ""),
        (
            "serve",
            "FLEXLORA_WORKERS is 1, but ",
            "; or set FLEXLORA_WORKERS=0 to serve alone, and run `flexlora-server worker` where it is installed",
        ),
    ],
)
def test_a_missing_extra_is_told_at_the_start(command: str, begin: str, end: str, tmp_path: Path) -> None:
    env = os.environ | {"FLEXLORA_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, command], env=env, capture_output=True, text=True, check=False
    )
    said = "a worker needs safetensors and torch, which this installation lacks: pip install 'flexlora[worker]'"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"flexlora-server: {begin}{said}{end}\n")
    assert not (tmp_path / "data").exists()
