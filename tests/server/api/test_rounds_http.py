"""Rounds over HTTP: who is gathered, what ends a round, what the operator may do when, and what a restart keeps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flexlora_server.database.transactions import Store
from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import Clock, Participant, Served, encode, part, served, spec, tensors


def joined(coordinator: Served, count: int, rank: int = 2, **declaration: Any) -> list[Participant]:
    """This many participants that have declared."""
    made = [coordinator.enroll(f"p{n}") for n in range(count)]
    for participant in made:
        participant.declare("run", rank, **declaration)
    return made


def polled(participant: Participant) -> int:
    """The status of a poll that does not wait."""
    return participant.call("GET", "/v1/runs/run/task", params={"wait": 0}).status_code


def update(coordinator: Served, task: dict[str, Any], seed: int = 0) -> bytes:
    return encode(tensors(coordinator.spec("run"), task["rank"], task["rank_pattern"], seed))


def events(coordinator: Served, last: int = 0) -> Iterator[tuple[int, str]]:
    """(id, kind) of each server-sent event as it arrives; ends with the run."""
    headers = {"Authorization": f"Bearer {coordinator.operator.key}", "Last-Event-ID": str(last)}
    with coordinator.http.stream("GET", "/v1/runs/run/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            elif "id" in fields:
                yield int(fields["id"]), fields["event"]
                fields = {}


def test_a_round_waits_for_min_clients(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    (first,) = joined(coordinator, 1)
    response = first.call("GET", "/v1/runs/run/task", params={"wait": 0})
    assert (response.status_code, response.headers["retry-after"]) == (204, "1")
    coordinator.clock.advance(1e6)
    assert polled(first) == 204
    summary = coordinator.round("run", 1)["summary"]
    assert summary["state"] == "OPEN"
    (second,) = joined(coordinator, 1, rank=4)
    with ThreadPoolExecutor(2) as pool:  # both must be polling: a million seconds have passed since the first declared
        tasks = list(pool.map(lambda participant: participant.task("run"), (first, second)))
    assert [task["rank"] for task in tasks] == [2, 4]
    summary = coordinator.round("run", 1)["summary"]
    assert summary["by_rank"] == [{"rank": 2, "participants": 1}, {"rank": 4, "participants": 1}]


def test_a_poll_wakes_when_its_round_begins(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    (first,) = joined(coordinator, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.task, "run", 60)
        while coordinator.round("run", 1)["summary"]["participants"]["present"] < 1:
            pass
        joined(coordinator, 1)
        assert waiting.result()["round"] == 1


@MOSTLY_ON_SQLITE
def test_a_sample_of_clients_per_round(coordinator: Served) -> None:
    coordinator.run(clients_per_round=2, min_clients=2, gather_timeout=50.0)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))
        participants = joined(coordinator, 4)
        polls = [pool.submit(one.call, "GET", "/v1/runs/run/task", params={"wait": 2}) for one in participants]
        statuses = [poll.result().status_code for poll in polls]
    assert sorted(statuses) == [200, 200, 204, 204]
    detail = coordinator.round("run", 1)
    chosen = {participant["client_id"] for participant in detail["participants"]}
    assert chosen == {p.client_id for p, status in zip(participants, statuses, strict=True) if status == 200}
    outsider = participants[statuses.index(204)]
    announcement = {"rank": 2, "alpha": 4.0, "examples": 1, "size": 1000, "sha256": "0" * 64}
    outsider.problem("not-assigned", "POST", "/v1/runs/run/rounds/1/uploads", json=announcement)


@MOSTLY_ON_SQLITE
def test_gathering_ends_with_fewer_after_its_time(coordinator: Served) -> None:
    coordinator.run(clients_per_round=3, min_clients=1, gather_timeout=50.0)
    (first,) = joined(coordinator, 1)
    assert polled(first) == 204
    assert "1 of 3" in coordinator.round("run", 1)["summary"]["waiting_for"]
    coordinator.clock.advance(50)
    assert first.task("run")["round"] == 1


def test_the_deadline_with_a_quorum_aggregates(coordinator: Served) -> None:
    coordinator.run(min_clients=3, min_updates=2)
    participants = joined(coordinator, 3)
    tasks = [participant.task("run") for participant in participants]
    for participant, task in list(zip(participants, tasks, strict=True))[:2]:
        participant.upload(task, update(coordinator, task))
    assert coordinator.work() == 0
    coordinator.clock.advance(100)
    wait_for(coordinator, "AGGREGATING")
    assert coordinator.work() == 1
    summary = coordinator.round("run", 1)["summary"]
    assert (summary["state"], summary["participants"]["accepted"]) == ("PUBLISHED", 2)
    late = {"rank": 2, "alpha": 4.0, "examples": 1, "size": 1000, "sha256": "0" * 64}
    participants[2].problem("round-closed", "POST", "/v1/runs/run/rounds/1/uploads", json=late)


def wait_for(coordinator: Served, state: str, number: int = 1) -> dict[str, Any]:
    while (summary := coordinator.round("run", number)["summary"])["state"] != state:
        pass
    return dict(summary)


def test_a_missed_quorum_opens_the_round_again(coordinator: Served) -> None:
    coordinator.run(min_clients=2, min_updates=2)
    participants = joined(coordinator, 2)
    tasks = [participant.task("run") for participant in participants]
    receipt = participants[0].upload(tasks[0], update(coordinator, tasks[0]))
    coordinator.clock.advance(100)
    again = participants[1].task("run")
    assert (again["round"], again["attempt"]) == (1, 2)
    assert again["adapter"]["sha256"] == tasks[1]["adapter"]["sha256"]
    assert polled(participants[0]) == 204  # its update was carried into the next attempt
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 1
    assert participants[0].commit(receipt["upload_id"]) == receipt
    participants[1].upload(again, update(coordinator, again))
    assert [one["upload_id"] for one in coordinator.round("run", 1)["inputs"]].count(receipt["upload_id"]) == 1
    assert coordinator.work() == 1
    rounds = coordinator.operator.expect(200, "GET", "/v1/runs/run/rounds")["rounds"]
    assert [(r["number"], r["attempt"]) for r in rounds] == [(2, 1), (1, 2), (0, 1)]
    assert [r["state"] for r in rounds[1:]] == ["PUBLISHED", "PUBLISHED"]


@MOSTLY_ON_SQLITE
def test_no_task_after_the_update_was_accepted(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    participant.upload(task, data)
    assert polled(participant) == 204


def test_a_rank_changes_between_rounds(coordinator: Served) -> None:
    coordinator.run(rounds=2)
    (participant,) = joined(coordinator, 1, rank=2)
    task = participant.task("run")
    participant.declare("run", 8, pattern={"up_proj": 4})  # holds from the next round on
    assert participant.task("run") == task
    announcement = {"rank": 8, "alpha": 4.0, "examples": 1, "size": 9000, "sha256": "0" * 64}
    participant.problem("rank-mismatch", "POST", "/v1/runs/run/rounds/1/uploads", json=announcement)
    participant.upload(task, update(coordinator, task))
    coordinator.work()
    task = participant.task("run")
    assert (task["round"], task["rank"], task["rank_pattern"]) == (2, 8, {"up_proj": 4})
    participant.download(task)
    participant.upload(task, update(coordinator, task))
    coordinator.work()
    assert coordinator.round("run", 2)["summary"]["state"] == "PUBLISHED"


def test_a_participant_revoked_in_a_round_is_not_waited_for(coordinator: Served) -> None:
    coordinator.run(min_clients=2, min_updates=1)
    stays, goes = joined(coordinator, 2)
    task, _ = stays.task("run"), goes.task("run")
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{goes.client_id}")
    goes.problem("unauthenticated", "GET", "/v1/runs/run/task")
    stays.upload(task, update(coordinator, task))
    assert coordinator.work() == 1
    assert polled(stays) == 204  # the next round gathers two, and one is gone
    assert coordinator.round("run", 2)["summary"]["participants"]["present"] <= 1


STATES = {  # what each of start, pause, resume, cancel does to a run in each state
    "DRAFT": (200, 409, 409, 200),
    "RUNNING": (409, 200, 409, 200),
    "PAUSED": (409, 409, 200, 200),
    "CANCELLED": (409, 409, 409, 409),
    "COMPLETED": (409, 409, 409, 409),
}


@MOSTLY_ON_SQLITE
@pytest.mark.parametrize("state", STATES)
def test_what_the_operator_may_do(coordinator: Served, state: str) -> None:
    for index, action in enumerate(("start", "pause", "resume", "cancel")):
        name = f"run-{action}"
        in_state(coordinator, name, state)
        status = coordinator.operator.call("POST", f"/v1/runs/{name}/{action}").status_code
        assert status == STATES[state][index], (state, action)
        if status == 409:
            body = coordinator.operator.problem("run-state", "POST", f"/v1/runs/{name}/{action}")
            assert body["context"] == {"state": state}
        run_status = coordinator.operator.expect(200, "GET", f"/v1/runs/{name}")["status"]
        assert (run_status["state"] == state) == (status == 409)
        assert run_status["waiting_for"].endswith(".")


def in_state(coordinator: Served, name: str, state: str) -> None:
    run = coordinator.operator.expect(201, "POST", "/v1/runs", json=spec(name, rounds=1))["spec"]["name"]
    path = {"PAUSED": ["start", "pause"], "CANCELLED": ["cancel"], "DRAFT": []}.get(state, ["start"])
    for action in path:
        coordinator.operator.expect(200, "POST", f"/v1/runs/{run}/{action}")
    if state == "COMPLETED":
        coordinator.work()
        participant = coordinator.enroll()
        participant.declare(name, 2)
        task = participant.task(name)
        participant.upload(task, encode(tensors(coordinator.spec(name), 2)))
        coordinator.work()


@MOSTLY_ON_SQLITE
def test_a_paused_run_finishes_its_round_and_begins_no_other(coordinator: Served) -> None:
    participant, task, data = coordinator.working(rounds=3)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")
    participant.upload(task, data)
    assert coordinator.work() == 1
    assert polled(participant) == 204
    assert coordinator.round("run", 2)["summary"]["waiting_for"] == "The run is paused; resume it to go on."
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(participant.task, "run", 60)
        coordinator.operator.expect(200, "POST", "/v1/runs/run/resume")
        assert waiting.result()["round"] == 2


def test_cancelling_wakes_who_waits(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    (participant,) = joined(coordinator, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(participant.problem, "run-over", "GET", "/v1/runs/run/task", params={"wait": 60})
        while coordinator.round("run", 1)["summary"]["participants"]["present"] < 1:
            pass
        coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
        assert waiting.result()["context"] == {"state": "CANCELLED"}
    assert coordinator.round("run", 1)["summary"]["state"] == "ABANDONED"
    assert (
        participant.call("GET", "/v1/runs/run/rounds/0/adapter?rank=2").status_code == 200
    )  # what was published stays


def test_a_run_cancelled_while_it_aggregates_publishes_nothing(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    participant.upload(task, data)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    assert coordinator.work() == 0
    participant.problem("adapter-not-published", "GET", "/v1/runs/run/rounds/1/adapter?rank=2")


@MOSTLY_ON_SQLITE
def test_evaluations_are_weighted_and_the_latest_counts(coordinator: Served) -> None:
    coordinator.run()
    first, second = joined(coordinator, 2)
    path = "/v1/runs/run/rounds/0/evaluations"
    for participant, examples, loss in ((first, 10, 9.0), (first, 10, 1.0), (second, 30, 2.0)):
        evaluation = {"rank": 2, "examples": examples, "metrics": {"loss": loss}}
        participant.expect(204, "POST", path, json=evaluation)
    second.expect(204, "POST", path, json={"rank": 8, "examples": 2**48, "metrics": {"loss": 1e100}})
    first.expect(204, "POST", path, json={"rank": 8, "examples": 2**48, "metrics": {"loss": -1e100, "f1": 0.5}})
    values = {
        (e["metric"], e["rank"]): (e["value"], e["participants"])
        for e in coordinator.round("run", 0)["summary"]["evaluations"]
    }
    assert values == {("loss", 2): (1.75, 2), ("loss", 8): (0.0, 2), ("f1", 8): (0.5, 1)}
    body = {"rank": 2, "examples": 1, "metrics": {"loss": 1.0}}
    first.problem("rank-not-allowed", "POST", path, json=body | {"rank": 3})
    first.problem("adapter-not-published", "POST", "/v1/runs/run/rounds/1/evaluations", json=body)


@MOSTLY_ON_SQLITE
def test_evaluators_are_told_apart_from_those_who_train(coordinator: Served) -> None:
    coordinator.run()
    [trainer] = joined(coordinator, 1)
    evaluators = [coordinator.enroll(name) for name in ("a", "b")]
    path, body = "/v1/runs/run/rounds/0/evaluations", {"rank": 2, "examples": 5}
    trainer.expect(204, "POST", path, json=body | {"metrics": {"loss": 1.0}})
    for participant, loss in zip(evaluators, (2.0, 4.0), strict=True):
        participant.expect(204, "POST", path, json=body | {"metrics": {"loss": loss}})
    told = coordinator.round("run", 0)["summary"]["evaluations"]
    assert told == [
        {"metric": "loss", "rank": 2, "value": 1.0, "participants": 1},
        {"metric": "loss", "rank": 2, "value": 3.0, "participants": 2, "role": "evaluator"},
    ]
    assert coordinator.operator.expect(200, "GET", "/v1/runs/run")["status"]["participants"] == 1


def test_events_arrive_as_they_happen_and_resume(coordinator: Served) -> None:
    participant, task, data = coordinator.working(rounds=1)
    stream = events(coordinator)
    first = [next(stream) for _ in range(7)]
    assert [kind for _, kind in first] == [
        "run-created",
        "run-running",
        "round-aggregating",
        "round-published",
        "round-open",
        "declared",
        "round-collecting",
    ]
    participant.upload(task, data)
    live = [next(stream), next(stream)]
    assert [kind for _, kind in live] == ["update-accepted", "round-aggregating"]
    coordinator.work()
    end = list(stream)
    assert [kind for _, kind in end] == ["round-published", "run-completed"]
    everything = [*first, *live, *end]
    assert [number for number, _ in everything] == sorted({number for number, _ in everything})
    assert list(events(coordinator, last=first[-1][0])) == [*live, *end]
    assert list(events(coordinator, last=end[-1][0])) == []


@contextmanager
def restarted(store: Store, folder: Path, clock: Clock) -> Iterator[Served]:
    """Another coordinator on the same database and folder."""
    reopened = Store(store.url, clock)
    with served(reopened, folder, clock) as running:
        yield running
    reopened.close()


def test_a_restart_in_the_middle_of_a_round_loses_nothing(store: Store, clock: Clock, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with served(store, folder, clock) as before:
        before.run(min_clients=2, min_updates=2, rounds=1)
        participants = joined(before, 2)
        tasks = [participant.task("run") for participant in participants]
        data = [update(before, task, seed) for seed, task in enumerate(tasks)]
        receipt = participants[0].upload(tasks[0], data[0])
        upload = participants[1].announce(tasks[1], data[1])["id"]
        half = len(data[1]) // 2
        headers = part(data[1][:half], 0)
        participants[1].expect(204, "PATCH", f"/v1/uploads/{upload}", headers=headers, content=data[1][:half])
    store.close()
    with restarted(store, folder, clock) as after:
        for participant in participants:
            participant.http = after.http
        assert participants[0].commit(receipt["upload_id"]) == receipt
        assert participants[1].task("run") == tasks[1]
        assert participants[1].expect(204, "HEAD", f"/v1/uploads/{upload}").headers["upload-offset"] == str(half)
        participants[1].send(upload, data[1], half)
        participants[1].commit(upload)
    with restarted(store, folder, clock) as last:  # between the last update and its aggregation
        participants[0].http = last.http
        assert last.work() == 1
        assert participants[0].problem("run-over", "GET", "/v1/runs/run/task")["context"] == {"state": "COMPLETED"}
        assert participants[0].expect(200, "GET", "/v1/runs/run/rounds/1/adapter?rank=8").content
        last.check_storage()


def test_the_same_name_at_once_makes_one_run(coordinator: Served) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda _: coordinator.operator.call("POST", "/v1/runs", json=spec()).status_code, range(12))
    assert sorted(answers) == [201, *[409] * 11]
