"""Two agents where there should be one: of one home, and of one key on two machines."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.cluster import Agent
from flexlora_client.errors import Exit
from tests.support.command import call, start
from tests.support.kit import Served, served_on_sqlite, spec
from tests.support.processes import Watched, watching
from tests.system.conftest import write_questions

pytestmark = pytest.mark.slow
RUN, ROUNDS = "run", 2


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    """A coordinator with a run in DRAFT, whose rounds are aggregated as they come."""
    with served_on_sqlite(tmp_path) as running:
        definition = spec(RUN, rounds=ROUNDS, min_clients=1, gather_timeout=0.0)
        running.operator.expect(201, "POST", "/v1/runs", json=definition)
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


@pytest.fixture
def home(site: Served, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    token = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    assert call("enroll", site.url, "--token", token, env={"FLEXLORA_HOME": str(folder)}).code == Exit.OK
    write_questions(folder / "data.jsonl", "Paris")
    (folder / "agent.log").touch()
    return folder


def arguments(home: Path) -> list[str]:
    given = [
        "run",
        RUN,
        "--rank",
        "4",
        "--data",
        str(home / "data.jsonl"),
        "--heldout-fraction",
        "0",
        "--device",
        "cpu",
    ]
    return [*given, "--trainer", "tests.support.trainers:Nudge", "--json"]


@contextmanager
def agent(home: Path) -> Iterator[Watched]:
    process = start(*arguments(home), env={"FLEXLORA_HOME": str(home)})
    assert process.stderr is not None
    with process.stderr, watching([Agent(home.name, home, process)]) as [one]:  # type: ignore[arg-type]  # its lines are text
        yield one


def finished(site: Served, one: Watched) -> None:
    """The run begins, and the agent takes part to its end."""
    site.operator.expect(200, "POST", f"/v1/runs/{RUN}/start")
    assert one.finish() == Exit.OK
    one.close()
    assert [event["round"] for event in one.told("accepted")] == [1, 2]
    for number in range(1, ROUNDS + 1):
        assert site.round(RUN, number)["summary"]["participants"]["accepted"] == 1


def test_a_home_takes_one_agent(site: Served, home: Path) -> None:
    with agent(home) as first:
        first.expect("waiting")
        second = call(*arguments(home), env={"FLEXLORA_HOME": str(home)})
        assert second.code == Exit.BAD_INPUT
        assert f"another agent is at work in {home / 'runs' / RUN}; give this one its own --home" in second.err
        finished(site, first)


def test_one_key_on_two_machines_is_told_to_both(site: Served, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(home, other)
    with agent(home) as first:
        first.expect("waiting")
        with agent(other) as second:
            told = second.expect("replaced")
            assert told["device"].startswith("cpu")
            assert first.finish() == Exit.REFUSED
            first.close()
            error = first.told("error")[-1]
            assert error["code"] == 3
            assert "stop one of the two" in error["reason"]
            finished(site, second)
    assert not first.told("task")
