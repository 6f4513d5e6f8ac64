"""An agent's process that is killed or stopped while it trains goes on from its checkpoint: the same update, trained once."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.errors import Exit
from tests.support.command import call, start
from tests.support.kit import Served, served_on_sqlite
from tests.support.processes import PATIENCE, until
from tests.support.tiny_models import make_run
from tests.system.conftest import write_questions

pytestmark = pytest.mark.slow
TRAINER = "tests.support.trainers:OftenSaved"
Event = dict[str, Any]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    """A running coordinator whose rounds are aggregated as they come."""
    with served_on_sqlite(tmp_path) as running:
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.01):
                running.work()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield running
        finally:
            stop.set()
            thread.join()


@pytest.fixture(autouse=True)
def _not_ignoring_interrupts() -> Iterator[None]:
    """As from a terminal: a job in a shell's background ignores SIGINT, and so would the agent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def home(site: Served, tmp_path: Path) -> dict[str, str]:
    env = {"FLEXLORA_HOME": str(tmp_path / "home")}
    token = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    assert call("enroll", site.url, "--token", token, "--name", "site", env=env).code == Exit.OK
    return env


def make(site: Served, llama: Path, name: str) -> None:
    """A started run of one round of 300 steps with dropout and a schedule."""
    spec = make_run(llama, target=["q_proj", "down_proj"], gather_timeout=0.0)
    training = {"epochs": 50, "lora_dropout": 0.1, "schedule": "cosine", "learning_rate": 0.001}
    changes = {"name": name, "rounds": 1, "training": spec.training.model_copy(update=training)}
    definition = spec.model_copy(update=changes).model_dump(mode="json")
    site.operator.expect(201, "POST", "/v1/runs", json=definition)
    site.operator.expect(200, "POST", f"/v1/runs/{name}/start")


def started(run: str, home: dict[str, str], data: Path) -> "subprocess.Popen[str]":
    options = [
        "--rank",
        "8",
        "--data",
        str(data),
        "--heldout-fraction",
        "0",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--json",
    ]
    return start("run", run, *options, "--trainer", TRAINER, env=home)


def finished(agent: "subprocess.Popen[str]") -> tuple[int, list[Event], str]:
    """How it ended, its events, and what it wrote for people."""
    out, err = agent.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    return agent.returncode, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_training_goes_on_to_the_same_update(
    site: Served, llama: Path, home: dict[str, str], tmp_path: Path, sent: signal.Signals
) -> None:
    data = write_questions(tmp_path / "data.jsonl", "Paris")
    for name in ("calm", "stormy"):
        make(site, llama, name)
    code, events, err = finished(started("calm", home, data))
    assert code == Exit.OK, err
    [expected] = [event["sha256"] for event in events if event["event"] == "accepted"]

    checkpoint = Path(home["FLEXLORA_HOME"]) / "runs" / "stormy" / "checkpoints" / "training.pt"
    agent = started("stormy", home, data)
    until(lambda: checkpoint.exists() or agent.poll() is not None, "a checkpoint is written")
    agent.send_signal(sent)
    code, events, err = finished(agent)
    kinds = [event["event"] for event in events]
    assert "trained" not in kinds
    if sent == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == Exit.INTERRUPTED
        assert kinds[-3:] == ["stopping", "training-stopped", "interrupted"]
        assert "a checkpoint is kept" in err
        assert err.endswith("interrupted\n")
    assert checkpoint.exists()

    code, events, err = finished(started("stormy", home, data))
    assert code == Exit.OK, err
    assert "training goes on after step" in err
    assert [event["sha256"] for event in events if event["event"] == "accepted"] == [expected]
    assert not checkpoint.exists()
    assert site.round("stormy", 1)["summary"]["participants"]["accepted"] == 1
