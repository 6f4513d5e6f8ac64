"""One key on two machines: the agent that declared last goes on, the one before is told, wherever it calls."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest

from flexlora_shared.messages.clients import INSTANCE_HEADER
from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import Participant, Served, encode, tensors

TASK = "/v1/runs/run/task"
DECLARATION = "/v1/runs/run/declaration"


@dataclass
class Agent(Participant):
    """An agent process of a participant."""

    instance: str = ""

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        options["headers"] = {INSTANCE_HEADER: self.instance, **options.get("headers", {})}
        return super().call(method, path, **options)

    def declared(self, device: str = "cpu") -> dict[str, Any]:
        body = {"rank": 4, "examples": 10, "hardware": {"device": device}}
        answer: dict[str, Any] = self.expect(200, "PUT", DECLARATION, json=body)
        return answer


def pair(coordinator: Served) -> tuple[Agent, Agent]:
    """Two agents with one key."""
    who = coordinator.enroll()
    first = Agent(who.http, who.key, who.client_id, "first")
    return first, replace(first, instance="second")


def refused(agent: Agent, method: str, path: str, **options: Any) -> None:
    told = agent.problem("superseded", method, path, **options)
    assert "on a GPU; stop one of the two" in str(told)


def test_the_older_one_is_refused_wherever_it_calls(coordinator: Served) -> None:
    run = coordinator.run(min_clients=1)
    first, second = pair(coordinator)
    assert "replaced" not in first.declared()
    assert "replaced" not in first.declared(), "the same one again"
    task = first.task("run")
    told = second.declared("a GPU")["replaced"]
    assert told["hardware"]["device"] == "cpu"
    refused(first, "GET", TASK, params={"wait": 0})
    refused(first, "GET", TASK, params={"wait": 30})
    data = encode(tensors(run, 4))
    failure = {"attempt": 1, "kind": "data", "reason": "no rows"}
    refused(first, "PUT", "/v1/runs/run/rounds/1/failure", json=failure)
    with pytest.raises(AssertionError, match="superseded"):
        first.announce(task, data)
    second.upload(second.task("run"), data)


def test_a_poll_that_waits_ends_when_another_one_declares(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    first, second = pair(coordinator)
    first.declared()
    first.expect(204, "GET", TASK, params={"wait": 1})
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(first.call, "GET", TASK, params={"wait": 60})
        while "flexlora_waiting_agents 1.0" not in coordinator.operator.call("GET", "/metrics").text:
            assert not answer.done()
        second.declared("a GPU")
        second.expect(204, "GET", TASK, params={"wait": 1})
        assert answer.result().json()["code"] == "superseded"
    second.expect(204, "GET", TASK, params={"wait": 1})


@MOSTLY_ON_SQLITE
def test_a_restart_after_a_while_goes_on_without_a_word(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    first, second = pair(coordinator)
    first.declared()
    coordinator.clock.advance(121)
    assert "replaced" not in second.declared()
    second.expect(204, "GET", TASK, params={"wait": 1})


@MOSTLY_ON_SQLITE
def test_who_may_still_train_is_named_however_long_ago(coordinator: Served) -> None:
    coordinator.run(min_clients=1, round_timeout=9999.0)
    first, second = pair(coordinator)
    first.declared()
    first.task("run")
    coordinator.clock.advance(1000)
    assert "replaced" in second.declared()


@MOSTLY_ON_SQLITE
def test_agents_that_name_no_instance_are_never_refused(coordinator: Served) -> None:
    """Agents of earlier releases."""
    coordinator.run(min_clients=2)
    first, _ = pair(coordinator)
    old = Participant(first.http, first.key, first.client_id)
    first.declared()
    old.expect(204, "GET", TASK, params={"wait": 1})
    old.declare("run", 4)
    for agent in (old, first, old):
        agent.expect(204, "GET", TASK, params={"wait": 1})


@MOSTLY_ON_SQLITE
def test_an_instance_is_a_short_name(coordinator: Served) -> None:
    coordinator.run()
    first, _ = pair(coordinator)
    for bad in ("x" * 65, "a b", ""):
        body = {"rank": 4, "examples": 10}
        replace(first, instance=bad).problem("invalid-request", "PUT", DECLARATION, json=body)
