"""A way back: an earlier round's adapter is published again as a new round, whatever the run was doing."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexlora_server.database.queries import events, rounds, runs
from flexlora_server.lifecycle import transitions
from flexlora_server.worker.replay import replay
from flexlora_shared.messages.records import RoundRecord
from tests.server.api.test_late_rounds import work_until_published
from tests.support.kit import Participant, Served, encode, tensors

PATH = "/v1/runs/run/rollback"


def taught(coordinator: Served, member: Participant, seed: int) -> dict[str, Any]:
    """The member's update of its task, accepted; its receipt."""
    return member.upload(member.task("run"), encode(tensors(coordinator.spec("run"), 8, seed=seed)))


def rounds_of(coordinator: Served, member: Participant, count: int) -> None:
    for seed in range(count):
        taught(coordinator, member, seed)
        assert coordinator.work() == 1


def digest(coordinator: Served, number: int) -> str:
    record: dict[str, Any] = coordinator.operator.expect(200, "GET", f"/v1/runs/run/rounds/{number}/record")
    return str(record["published"])


def begun(coordinator: Served, published: int, **changes: Any) -> Participant:
    coordinator.run(**{"rounds": 5, **changes})
    member = coordinator.enroll()
    member.declare("run", 8)
    rounds_of(coordinator, member, published)
    return member


def bytes_of(coordinator: Served, number: int) -> bytes:
    content: bytes = coordinator.operator.call("GET", f"/v1/runs/run/rounds/{number}/adapter?rank=8").content
    return content


def test_the_bytes_of_the_round_before_are_served_and_the_run_goes_on(coordinator: Served) -> None:
    member = begun(coordinator, 2)
    before, task = bytes_of(coordinator, 1), member.task("run")
    data = encode(tensors(coordinator.spec("run"), 8, seed=9))
    status = member.announce(task, data)
    rolled = coordinator.operator.expect(200, "POST", PATH, json={"to": 1})
    assert (rolled["state"], rolled["rounds_published"], rolled["current_round"]) == ("RUNNING", 3, 4)
    assert bytes_of(coordinator, 3) == before
    assert [digest(coordinator, n) for n in (1, 3)] == [digest(coordinator, 1)] * 2
    assert digest(coordinator, 2) != digest(coordinator, 1)  # history is as it was
    shown = coordinator.round("run", 3)["summary"]
    assert (shown["state"], shown["attempt"], shown["reason"]) == ("PUBLISHED", 2, "rolled back to round 1")
    # what was on its way began from the adapter that was taken back
    member.problem("round-closed", "PUT", f"/v1/uploads/{status['id']}/commit")
    announced = {"rank": 8, "alpha": 16.0, "examples": 10, "size": len(data), "sha256": "0" * 64}
    member.problem("round-closed", "POST", "/v1/runs/run/rounds/3/uploads", json=announced)
    assert member.task("run")["round"] == 4
    assert member.download(member.task("run")) == before
    taught(coordinator, member, 7)
    assert coordinator.work() == 1
    record = coordinator.operator.expect(200, "GET", "/v1/runs/run/rounds/4/record")
    assert record["previous"] == digest(coordinator, 1)
    assert record["before"] is None  # the step back is no direction for a filter
    assert coordinator.operator.expect(200, "GET", "/v1/runs/run")["status"]["current_round"] == 5


def test_accepted_and_late_updates_of_the_round_taken_back_count_nowhere(coordinator: Served) -> None:
    coordinator.run(rounds=5, min_clients=2, min_updates=1, late_updates="next-round")
    one, two = (coordinator.enroll(name) for name in "ab")
    for member in (one, two):
        member.declare("run", 8)
    first, second = (member.task("run") for member in (one, two))
    data = [encode(tensors(coordinator.spec("run"), 8, seed=seed)) for seed in (1, 2)]
    one.upload(first, data[0])
    coordinator.clock.advance(100)
    work_until_published(coordinator, 1)
    assert two.upload(second, data[1])["counts_in"] == 2
    coordinator.operator.expect(200, "POST", PATH, json={"to": 0})
    assert kinds(coordinator)[-3:] == ["round-abandoned", "run-rolled-back", "round-open"]
    assert coordinator.work() == 0
    for member in (one, two):
        member.declare("run", 8)  # a sign of life: the clock has jumped
    for member, update in zip((one, two), data, strict=True):
        task = member.task("run")
        assert task["round"] == 3
        member.upload(task, update)
    assert coordinator.work() == 1
    assert [entry["staleness"] for entry in coordinator.round("run", 3)["inputs"]] == [0, 0]


def kinds(coordinator: Served) -> list[str]:
    with coordinator.store.reading() as tx:
        return [row.kind for row in events.after(tx, "run", 0)]


def test_a_worker_that_aggregates_meanwhile_publishes_nothing(
    coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = begun(coordinator, 1)
    taught(coordinator, member, 5)
    work = coordinator.worker._work

    def slowly(*arguments: Any) -> Any:
        result = work(*arguments)
        coordinator.operator.expect(200, "POST", PATH, json={"to": 0})
        return result

    monkeypatch.setattr(coordinator.worker, "_work", slowly)
    assert coordinator.worker.step()
    assert digest(coordinator, 2) == digest(coordinator, 0)
    assert coordinator.round("run", 3)["summary"]["state"] in {"OPEN", "COLLECTING"}
    assert kinds(coordinator).count("round-published") == 2  # of rounds 0 and 1: a rollback has its own event


@pytest.mark.parametrize("state", ["PAUSED", "COMPLETED"])
def test_a_paused_and_a_complete_run_keep_their_state(coordinator: Served, state: str) -> None:
    begun(coordinator, 2, rounds=2 if state == "COMPLETED" else 5)
    if state == "PAUSED":
        coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")
    rolled = coordinator.operator.expect(200, "POST", PATH, json={"to": 1})
    assert (rolled["state"], rolled["rounds_published"]) == (state, 3)
    assert digest(coordinator, 3) == digest(coordinator, 1)
    assert coordinator.operator.expect(200, "POST", PATH, json={"to": 2})["rounds_published"] == 4  # and forth again
    assert digest(coordinator, 4) == digest(coordinator, 2)


def test_a_failed_run_goes_on(coordinator: Served) -> None:
    member = begun(coordinator, 1)
    taught(coordinator, member, 5)
    with coordinator.store.transaction() as tx:
        run = runs.lock(tx, "run")
        for _ in range(5):
            transitions.record_failure(tx, run, rounds.latest(tx, "run", 2), "it broke")
    assert coordinator.operator.expect(200, "POST", PATH, json={"to": 1})["state"] == "RUNNING"
    assert member.task("run")["round"] == 3


def test_refusals(coordinator: Served) -> None:
    member = begun(coordinator, 1)
    coordinator.operator.problem("adapter-not-published", "POST", PATH, json={"to": 2})
    member.problem("forbidden", "POST", PATH, json={"to": 0})
    assert coordinator.operator.expect(200, "GET", "/v1/runs/run")["status"]["rounds_published"] == 1
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    coordinator.operator.problem("run-state", "POST", PATH, json={"to": 0})


def test_the_record_of_a_rollback_names_the_round(coordinator: Served, tmp_path: Path) -> None:
    begun(coordinator, 1)
    coordinator.operator.expect(200, "POST", PATH, json={"to": 0})
    told = coordinator.operator.expect(200, "GET", "/v1/runs/run/rounds/2/record")
    record = RoundRecord.model_validate_json(json.dumps(told))
    assert (record.restored, record.inputs) == (0, ())
    assert replay(record, coordinator.settings.data_dir).faults == ()
    assert "round 0, which was published again, is missing" in replay(record, tmp_path).faults[0]
