"""An agent's process killed, put to sleep or cut off in each phase of a round: every round is trained and counted once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.cluster import Agent
from flexlora_client.errors import Exit
from tests.support.command import call
from tests.support.kit import Served, served_on_sqlite
from tests.support.processes import Watched, until, watching
from tests.support.proxy import Marked, Proxy, proxy
from tests.support.tiny_models import make_run
from tests.system.conftest import write_questions

pytestmark = pytest.mark.slow
HELD = ("training", "evaluating")  # by `tests.support.gates`; the others by the network
MARKS = {
    "downloading": Marked("hole", "down", b"/adapter?", 4000),
    "uploading": Marked("hole", "up", b"PATCH /v1/uploads", 4000),
}
ROUNDS = 2


@dataclass
class Place:
    """A coordinator behind a network, one participant, and what rounds publish when nothing happens."""

    site: Served
    line: Proxy
    home: Path
    model: Path
    calm: dict[int, str] = field(default_factory=dict)  # digests of accepted updates by round

    def define(self, run: str) -> None:
        spec = make_run(self.model, target=["q_proj", "down_proj"], gather_timeout=0.0)
        training = {"epochs": 4, "lora_dropout": 0.1, "schedule": "cosine", "learning_rate": 0.001}
        changes = {"name": run, "rounds": ROUNDS, "training": spec.training.model_copy(update=training)}
        definition = spec.model_copy(update=changes).model_dump(mode="json")
        self.site.operator.expect(201, "POST", "/v1/runs", json=definition)

    def start(self, run: str) -> None:
        self.site.operator.expect(200, "POST", f"/v1/runs/{run}/start")

    def agent(self, run: str, gate: Path, phase: str, home: Path | None = None) -> Agent:
        home = home or self.home
        data = ("--data", str(self.home / "data.jsonl"), "--heldout-fraction", "0.3", "--answers", "1")
        plugins = ("--trainer", "tests.support.gates:HeldTraining", "--metric", "tests.support.gates:agreement")
        command = [sys.executable, "-c", "from flexlora_client.cli import main; main()", "run", run, "--rank", "8"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "FLEXLORA_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "GATE": str(gate),
            "GATE_AT": phase,
        }
        with (home / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *data, *plugins, "--device", "cpu", "--threads", "1", "--json"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return Agent(run, home, process)

    def check(self, run: str, agents: list[Watched], begun: int = 1) -> None:
        """Every round has the one update that it has in calm, trained once; `begun`: how often training of round 1 began."""
        events = [event for agent in agents for event in agent.events]
        assert not [event for event in events if event["event"] in {"lost", "failed", "error"}], events
        for number in range(1, ROUNDS + 1):
            told = [event for event in events if event.get("round") == number]
            kinds = [event["event"] for event in told]
            assert (kinds.count("trained"), kinds.count("accepted")) == (1, 1), told
            assert kinds.count("training") == (begun if number == 1 else 1), told
            summary = self.site.round(run, number)["summary"]
            assert (summary["state"], summary["attempt"]) == ("PUBLISHED", 1)
            assert summary["participants"]["accepted"] == 1
        accepted = {event["round"]: event["sha256"] for event in events if event["event"] == "accepted"}
        assert accepted == (self.calm or accepted)
        assert not (self.home / "runs" / run / "output").exists()
        self.calm = accepted


@pytest.fixture(scope="module")
def place(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with served_on_sqlite(folder) as site, proxy(site.url) as line:
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.01):
                site.work()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            home = folder / "home"
            enroll(site, line, home)
            write_questions(home / "data.jsonl", "Paris")
            made = Place(site, line, home, llama)
            made.define("calm")
            made.start("calm")
            (folder / "gate").mkdir()
            with watching([made.agent("calm", folder / "gate", "none")]) as [agent]:
                assert agent.finish() == Exit.OK, agent.log()
            made.check("calm", [agent])
            yield made
        finally:
            stop.set()
            thread.join()


def enroll(site: Served, line: Proxy, home: Path) -> None:
    """A participant that reaches the coordinator through the line."""
    token = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    assert call("enroll", line.url, "--token", token, env={"FLEXLORA_HOME": str(home)}).code == Exit.OK


@dataclass
class Held:
    """An agent that stands in a phase; `go_on` lets it leave where it is held there."""

    agent: Watched
    phase: str
    gate: Path

    def go_on(self) -> None:
        if self.phase in HELD:
            (self.gate / "go-on").open("wb").close()


def bring_to(place: Place, run: str, phase: str, gate: Path, agent: Watched) -> Held:
    """Let the agent reach the phase in round 1."""
    agent.expect("waiting")
    if phase in MARKS:
        place.line.marked.append(MARKS[phase])
    if phase != "waiting":
        place.start(run)
    if phase in HELD:
        until(lambda: (gate / "reached").exists() or agent.agent.process.poll() is not None, f"it is {phase}")
    if phase in MARKS:
        until(place.line.struck.is_set, f"it is {phase}")
    return Held(agent, phase, gate)


def slept(place: Place, held: Held) -> None:
    """As of a lid that is closed and opened: nothing runs, connections are gone afterwards."""
    process = psutil.Process(held.agent.agent.process.pid)
    process.suspend()
    until(lambda: process.status() == psutil.STATUS_STOPPED, "it sleeps")
    place.line.cut()
    place.line.mend()
    process.resume()
    held.go_on()


def cut_off(place: Place, held: Held) -> None:
    """No network until the agent has missed it."""
    place.line.cut()
    held.go_on()
    held.agent.expect("retrying")
    place.line.mend()


PHASES = ["waiting", "downloading", "evaluating", "training", "uploading"]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "go-on")
    return tmp_path


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("happens", [slept, cut_off])
def test_it_goes_on_by_itself(place: Place, gate: Path, phase: str, happens: Callable[[Place, Held], Any]) -> None:
    run = f"{phase}-{happens.__name__}".replace("_", "-")
    place.define(run)
    place.line.struck.clear()
    with watching([place.agent(run, gate, phase)]) as [agent]:
        happens(place, bring_to(place, run, phase, gate, agent))
        if phase == "waiting":
            place.start(run)
        assert agent.finish() == Exit.OK, agent.log()
    assert "Traceback" not in agent.log()
    place.check(run, [agent])


@pytest.mark.parametrize("phase", PHASES)
def test_killed_it_goes_on_where_it_was(place: Place, gate: Path, phase: str) -> None:
    run = f"{phase}-killed"
    place.define(run)
    place.line.struck.clear()
    with watching([place.agent(run, gate, phase)]) as [agent]:
        bring_to(place, run, phase, gate, agent)
        agent.kill()
        assert agent.agent.process.returncode == -signal.SIGKILL
    place.line.cut()  # of a killed process the system closes what was open; a hole would keep it
    place.line.mend()
    if phase == "waiting":
        place.start(run)
    with watching([place.agent(run, gate, phase)]) as [again]:
        assert again.finish() == Exit.OK, again.log()
    lines = [line for line in again.log().splitlines() if f" {run}: " in line]  # the log is the home's, of all its runs
    assert any("training goes on after step" in line for line in lines) == (phase == "training")
    assert bool(again.told("kept")) == (phase == "uploading")
    place.check(run, [agent, again], begun=2 if phase == "training" else 1)
