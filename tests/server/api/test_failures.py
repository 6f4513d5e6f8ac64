"""Failures during a round: the round stops waiting, and a participant that goes on takes its failure back."""

from typing import Any

import pytest

from flexlora_server.database.queries import events
from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import Participant, Served, encode, tensors

REASON = "a batch of 8 examples does not fit into 8 GB"


def begun(coordinator: Served, names: str, **changes: Any) -> tuple[list[Participant], list[dict[str, Any]]]:
    """A run with these participants in its first round, and their tasks."""
    coordinator.run(**{"min_clients": len(names), "rounds": 3} | changes)
    people = [coordinator.enroll(name) for name in names]
    for participant in people:
        participant.declare("run", 4)
    return people, [participant.task("run") for participant in people]


def fail(participant: Participant, task: dict[str, Any], **told: Any) -> None:
    body = {"attempt": task["attempt"], "kind": "memory", "reason": REASON, **told}
    participant.expect(204, "PUT", f"/v1/runs/run/rounds/{task['round']}/failure", json=body)


def summary(coordinator: Served, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = coordinator.round("run", number)["summary"]
    return found


def update(coordinator: Served, rank: int = 4, seed: int = 1) -> bytes:
    return encode(tensors(coordinator.spec("run"), rank, seed=seed))


def polled(participant: Participant) -> dict[str, Any] | None:
    """The task that the coordinator has now, None without one."""
    answer = participant.call("GET", "/v1/runs/run/task", params={"wait": 0})
    found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
    return found


def test_a_round_ends_without_the_one_that_failed(coordinator: Served) -> None:
    (a, b, c), tasks = begun(coordinator, "abc")
    a.upload(tasks[0], update(coordinator))
    fail(c, tasks[2])
    fail(c, tasks[2])  # an answer was lost
    assert summary(coordinator)["waiting_for"].startswith(
        "Waiting for updates: 1 of 2 are accepted, 1 participant failed. Until"
    )
    assert polled(c) is None
    _check_who_sees_it(coordinator, a, c)
    b.upload(tasks[1], update(coordinator, seed=2))
    assert summary(coordinator)["state"] == "AGGREGATING"
    coordinator.work()
    for participant in (a, b, c):
        participant.declare("run", 4)
    assert c.task("run")["round"] == 2


def _check_who_sees_it(coordinator: Served, other: Participant, failed: Participant) -> None:
    """The operator sees who failed and on what; another participant only that somebody did."""
    shown = {one["client_id"]: one for one in coordinator.round("run", 1)["participants"]}[failed.client_id]
    assert (shown["state"], shown["failure"]) == ("failed", f"memory: {REASON}")
    assert coordinator.round("run", 1)["summary"]["participants"]["failed"] == 1
    assert REASON not in other.call("GET", "/v1/runs/run/rounds/1").text
    assert REASON not in other.call("GET", "/v1/runs/run").text
    with coordinator.store.reading() as tx:
        told = [event.detail for event in events.after(tx, "run", 0) if event.kind == "participant-failed"]
    assert told == ["a participant cannot finish its task"]


@MOSTLY_ON_SQLITE
def test_a_round_that_cannot_reach_its_quorum_opens_again(coordinator: Served) -> None:
    (a, b), tasks = begun(coordinator, "ab", min_updates=2)
    a.upload(tasks[0], update(coordinator))
    fail(b, tasks[1])
    found = summary(coordinator)
    assert (found["state"], found["attempt"]) == ("OPEN", 2)
    assert polled(b) is None
    assert summary(coordinator)["waiting_for"] == (
        "Waiting for participants: 1 of at least 2 are present, 1 participant failed."
    )
    b.declare("run", 2)
    again = b.task("run")
    assert (again["round"], again["attempt"], again["rank"]) == (1, 2, 2)
    b.upload(again, update(coordinator, rank=2))
    coordinator.work()
    assert summary(coordinator)["state"] == "PUBLISHED"


@MOSTLY_ON_SQLITE
def test_a_new_declaration_gets_the_task_again_at_its_rank(coordinator: Served) -> None:
    (a, b, c), tasks = begun(coordinator, "abc")
    fail(b, tasks[1])
    b.declare("run", 2)
    again = b.task("run")
    assert (again["attempt"], again["rank"]) == (1, 2)
    for participant, task, rank in ((a, tasks[0], 4), (b, again, 2), (c, tasks[2], 4)):
        assert summary(coordinator)["state"] == "COLLECTING"
        participant.upload(task, update(coordinator, rank))
    assert summary(coordinator)["state"] == "AGGREGATING"


@MOSTLY_ON_SQLITE
@pytest.mark.parametrize("announced_before", [True, False])
def test_an_update_wins_over_a_failure(coordinator: Served, announced_before: bool) -> None:
    (a, b, c), tasks = begun(coordinator, "abc")
    data = update(coordinator)
    if announced_before:
        upload = b.announce(tasks[1], data)["id"]
        fail(b, tasks[1])
    else:
        fail(b, tasks[1])
        upload = b.announce(tasks[1], data)["id"]
        assert "0 of 3" in summary(coordinator)["waiting_for"], "it is waited for again"
    b.send(upload, data)
    b.commit(upload)
    fail(b, tasks[1])  # too late
    assert "1 of 3" in summary(coordinator)["waiting_for"]
    for participant, task in ((a, tasks[0]), (c, tasks[2])):
        participant.upload(task, update(coordinator, seed=3))
    coordinator.work()
    assert len(coordinator.round("run", 1)["inputs"]) == 3


@MOSTLY_ON_SQLITE
def test_a_failure_of_an_abandoned_attempt_counts_in_the_next(coordinator: Served) -> None:
    """It began from the same adapter with the same data: it would fail again."""
    (a, b), tasks = begun(coordinator, "ab", min_updates=2)
    a.upload(tasks[0], update(coordinator))
    coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")
    coordinator.clock.advance(100)
    while summary(coordinator)["attempt"] == 1:
        a.call("GET", "/v1/runs/run/task", params={"wait": 1})
    fail(b, tasks[1])
    coordinator.operator.expect(200, "POST", "/v1/runs/run/resume")
    b.expect(204, "GET", "/v1/runs/run/task", params={"wait": 1})
    assert summary(coordinator)["state"] == "OPEN"


@MOSTLY_ON_SQLITE
def test_who_has_no_task_cannot_fail(coordinator: Served) -> None:
    (a, _), tasks = begun(coordinator, "ab")
    body = {"attempt": 1, "kind": "data", "reason": REASON}
    stranger = coordinator.enroll("stranger")
    stranger.problem("not-assigned", "PUT", "/v1/runs/run/rounds/1/failure", json=body)
    a.problem("not-assigned", "PUT", "/v1/runs/run/rounds/1/failure", json=body | {"attempt": 2})
    a.problem("round-not-found", "PUT", "/v1/runs/run/rounds/2/failure", json=body)
    a.problem("invalid-request", "PUT", "/v1/runs/run/rounds/1/failure", json=body | {"kind": "bored"})
    a.problem("invalid-request", "PUT", "/v1/runs/run/rounds/1/failure", json=body | {"reason": "x" * 501})
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    fail(a, tasks[0])  # whatever: nobody waits for it
