"""Late updates: after the deadline, in grace, of over-selected participants, of abandoned attempts."""

from typing import Any

import numpy as np
import pytest
from safetensors.torch import load

from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import Participant, Served, encode, part, tensors


def two(coordinator: Served, **changes: Any) -> tuple[list[Participant], list[dict[str, Any]], list[bytes]]:
    """A run of two participants in its first round, their tasks, and an update of each."""
    run = coordinator.run(**{"min_clients": 2, "rounds": 3} | changes)
    pair = [coordinator.enroll(name) for name in ("quick", "slow")]
    for participant in pair:
        participant.declare("run", 4)
    tasks = [participant.task("run") for participant in pair]
    return pair, tasks, [encode(tensors(run, 4, seed=seed)) for seed in (1, 2)]


def begin(participant: Participant, upload: str, data: bytes) -> None:
    """Send the first 50 bytes."""
    headers = part(data[:50], 0, False)
    participant.expect(204, "PATCH", f"/v1/uploads/{upload}", headers=headers, content=data[:50])


def work_until_published(coordinator: Served, number: int) -> None:
    """Let the clock's coordinator close the round, and aggregate it."""
    while coordinator.round("run", number)["summary"]["state"] != "PUBLISHED":
        coordinator.work()


def inputs(coordinator: Served, number: int) -> list[tuple[str, int]]:
    return [(item["upload_id"], item["staleness"]) for item in coordinator.round("run", number)["inputs"]]


def product(data: bytes, module: str = "layers.0.q_proj") -> np.ndarray[Any, Any]:
    """scaling * B @ A of an upload: alpha is twice the rank."""
    named = {key: tensor.double().numpy() for key, tensor in load(data).items() if module in key}
    A, B = (next(value for key, value in named.items() if f"lora_{which}" in key) for which in "AB")
    return np.asarray(2.0 * B @ A)


@pytest.mark.parametrize(
    ("database_url", "strategy"),
    [("sqlite", "flexlora"), ("sqlite", "flexlora-residual"), ("postgresql", "flexlora-residual")],
    indirect=["database_url"],
)
def test_a_late_update_counts_once_and_less_in_the_next_round(coordinator: Served, strategy: str) -> None:
    pair, tasks, data = two(coordinator, late_updates="next-round", strategy=strategy, ranks=[4, 16], error_bound=1.0)
    quick, slow = pair
    bases = [quick.download(tasks[0])]
    quick.upload(tasks[0], data[0])
    upload = slow.announce(tasks[1], data[1])["id"]
    begin(slow, upload, data[1])
    coordinator.clock.advance(100)
    work_until_published(coordinator, 1)
    slow.send(upload, data[1], 50)  # the round is over, and its upload goes on
    receipt = slow.commit(upload)
    assert (receipt["round"], receipt["counts_in"]) == (1, 2)
    assert slow.commit(upload) == receipt
    slow.declare("run", 4)  # a sign of life: a round gathers two
    task = quick.task("run")
    assert task["round"] == 2
    bases.append(quick.download(task))
    quick.upload(task, data[0])
    coordinator.clock.advance(100)
    work_until_published(coordinator, 2)
    assert sorted(staleness for _, staleness in inputs(coordinator, 2)) == [0, 1]
    assert (upload, 1) in inputs(coordinator, 2)
    discounted = 1 / np.sqrt(2)
    weights = np.array([1.0, discounted]) / (1.0 + discounted)
    expected = weights[0] * product(data[0]) + weights[1] * product(data[1])
    if strategy == "flexlora-residual":  # each measured against what it was served
        published = stored(coordinator, 1)
        expected = published + weights[0] * (product(data[0]) - product(bases[1]))
        expected += weights[1] * (product(data[1]) - product(bases[0]))
    assert np.allclose(stored(coordinator, 2), expected, atol=1e-5 * np.abs(expected).max())
    slow.declare("run", 4)
    last = quick.task("run")
    quick.upload(last, data[0])
    coordinator.clock.advance(100)
    work_until_published(coordinator, 3)
    assert upload not in dict(inputs(coordinator, 3))


def stored(coordinator: Served, number: int, module: str = "layers.0.q_proj") -> np.ndarray[Any, Any]:
    """The published global update of a module, at its largest rank."""
    response = coordinator.operator.call("GET", f"/v1/runs/run/rounds/{number}/adapter?rank=16")
    return product(response.content, module)


@MOSTLY_ON_SQLITE
def test_without_the_option_late_is_lost(coordinator: Served) -> None:
    (quick, slow), tasks, data = two(coordinator)
    quick.upload(tasks[0], data[0])
    upload = slow.announce(tasks[1], data[1])["id"]
    slow.send(upload, data[1])
    coordinator.clock.advance(100)
    work_until_published(coordinator, 1)
    slow.problem("round-closed", "PUT", f"/v1/uploads/{upload}/commit")


@MOSTLY_ON_SQLITE
def test_nothing_follows_the_last_round(coordinator: Served) -> None:
    (quick, slow), tasks, data = two(coordinator, late_updates="next-round", rounds=1)
    quick.upload(tasks[0], data[0])
    upload = slow.announce(tasks[1], data[1])["id"]
    slow.send(upload, data[1])
    coordinator.clock.advance(100)
    work_until_published(coordinator, 1)
    slow.problem("round-closed", "PUT", f"/v1/uploads/{upload}/commit")
    coordinator.check_storage()


@MOSTLY_ON_SQLITE
def test_grace_lets_an_upload_on_its_way_arrive(coordinator: Served) -> None:
    (quick, slow), tasks, data = two(coordinator, grace=50.0)
    quick.upload(tasks[0], data[0])
    upload = slow.announce(tasks[1], data[1])["id"]
    coordinator.clock.advance(120)
    waits = coordinator.round("run", 1)["summary"]["waiting_for"]
    assert waits.startswith("The deadline has passed; 1 updates on their way are waited for. Until ")
    slow.send(upload, data[1])
    assert slow.commit(upload)["counts_in"] == 1
    assert coordinator.work() == 1
    assert len(inputs(coordinator, 1)) == 2


@MOSTLY_ON_SQLITE
def test_while_others_have_grace_a_late_update_fills_the_quorum(coordinator: Served) -> None:
    (quick, slow), tasks, data = two(coordinator, grace=50.0, min_updates=2, late_updates="next-round")
    upload = slow.announce(tasks[1], data[1])["id"]
    coordinator.clock.advance(101)
    assert quick.upload(tasks[0], data[0])["counts_in"] == 1
    slow.send(upload, data[1])
    assert slow.commit(upload)["counts_in"] == 1
    assert coordinator.work() == 1
    assert len(inputs(coordinator, 1)) == 2


@MOSTLY_ON_SQLITE
def test_over_selection_does_not_wait_for_the_slowest(coordinator: Served) -> None:
    pair, tasks, data = two(
        coordinator, clients_per_round=1, over_selection=1, min_clients=1, gather_timeout=1e4, late_updates="next-round"
    )
    pair[0].upload(tasks[0], data[0])
    assert coordinator.work() == 1
    assert pair[1].upload(tasks[1], data[1])["counts_in"] == 2


@MOSTLY_ON_SQLITE
def test_what_an_abandoned_attempt_trained_counts_in_the_next(coordinator: Served) -> None:
    """Its upload was on its way when the quorum was missed; it goes on, and counts though it comes before the next attempt."""
    (quick, slow), tasks, data = two(coordinator, min_updates=2)
    first = quick.upload(tasks[0], data[0])
    upload = slow.announce(tasks[1], data[1])["id"]
    begin(slow, upload, data[1])
    coordinator.clock.advance(100)
    while coordinator.round("run", 1)["summary"]["attempt"] == 1:
        pass  # the coordinator looks at its clock twice a second
    slow.send(upload, data[1], 50)
    second = slow.commit(upload)
    quick.declare("run", 4)
    slow.call("GET", "/v1/runs/run/task", params={"wait": 1})
    while not coordinator.work():
        pass
    assert {one for one, _ in inputs(coordinator, 1)} == {first["upload_id"], second["upload_id"]}


@MOSTLY_ON_SQLITE
def test_in_grace_the_same_announcement_finds_its_upload_and_the_task_is_still_given(coordinator: Served) -> None:
    (quick, slow), tasks, data = two(coordinator, grace=50.0)
    quick.upload(tasks[0], data[0])
    upload = slow.announce(tasks[1], data[1])["id"]
    begin(slow, upload, data[1])
    coordinator.clock.advance(120)
    assert slow.task("run", wait=0)["round"] == 1
    assert slow.announce(tasks[1], data[1])["offset"] == 50
    slow.send(upload, data[1], 50)
    assert slow.commit(upload)["counts_in"] == 1


@MOSTLY_ON_SQLITE
def test_only_who_was_drawn_for_this_attempt_is_given_its_task(coordinator: Served) -> None:
    coordinator.run(clients_per_round=1, min_updates=1)
    participants = {
        participant.client_id: participant for participant in (coordinator.enroll(str(n)) for n in range(4))
    }
    for attempt in range(1, 4):
        for participant in participants.values():
            participant.declare("run", 2)
        while coordinator.round("run", 1)["summary"]["state"] != "COLLECTING":
            pass
        answers = {name: each.call("GET", "/v1/runs/run/task").status_code for name, each in participants.items()}
        assigned = [participant["client_id"] for participant in coordinator.round("run", 1)["participants"]]
        assert [name for name, status in answers.items() if status == 200] == assigned
        coordinator.clock.advance(100)
        while coordinator.round("run", 1)["summary"]["attempt"] == attempt:
            pass
