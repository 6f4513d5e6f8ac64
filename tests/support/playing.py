"""A run of three rounds that is played alike on any coordinator: tied singular values, sampling, late updates, filters."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load
from sqlalchemy import select
from torch import Tensor

from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.database.schema import Adapter, Slice
from flexlora_server.worker.worker import Worker
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import Participant, Served, encode, part, tensors

NAMES = ("ada", "bob", "cem", "dot", "eve")
RANKS = {"ada": 2, "bob": 4, "cem": 4, "dot": 4, "eve": 2}
KRUM = {"kind": "multi-krum", "byzantine_share": 0.2}
CLIP = {"kind": "norm-clip", "median_factor": 1.0}


def spec_changes(rule: str) -> dict[str, Any]:
    """A run of this strategy: four of five take part, what is late counts in the next round, filters."""
    return {
        "strategy": rule,
        "ranks": [8] if strategy(rule).one_rank else [2, 4, 8],
        "extra": [{"name": "head.weight", "shape": [3, 5]}],
        "rounds": 3,
        "min_clients": 4,
        "clients_per_round": 4,
        "late_updates": "discard" if alternates(rule) else "next-round",
        "robust": [KRUM] if rule == "hetlora" else [CLIP, KRUM],
        "seed": 7,
    }


def alternates(rule: str) -> bool:
    """Whether its rounds train another factor each: then no update counts in the next one."""
    return strategy(rule).in_even_rounds is not None


def play(coordinator: Served, order: Sequence[str], rule: str) -> list[tuple[Any, ...]]:
    """Play the run, participants enrolled and updates committed in this order; every published blob."""
    run = coordinator.run(**spec_changes(rule))
    members = {name: coordinator.enroll(name) for name in order}
    _pause(coordinator)
    _declare(coordinator, members, run)
    sampled = _sampled(coordinator, members, 1)
    slow = min(sampled)  # whatever the order, the same one
    data, task = _update(run, members[slow], slow, 1)
    upload = members[slow].announce(task, data)["id"]
    half = len(data) // 2
    members[slow].expect(204, "PATCH", f"/v1/uploads/{upload}", headers=part(data[:half], 0), content=data[:half])
    _upload_all(run, members, [name for name in sampled if name != slow], 1)
    _pause(coordinator)  # a sign of life from before may be written after the clock's jump
    coordinator.clock.advance(100)
    _publish(coordinator, 1)
    if not alternates(rule):
        members[slow].send(upload, data, half)
        assert members[slow].commit(upload)["counts_in"] == 2
    for number in (2, 3):
        _declare(coordinator, members, run)
        _upload_all(run, members, _sampled(coordinator, members, number), number)
        _pause(coordinator)
        _publish(coordinator, number)
    return _published(coordinator)


def _pause(coordinator: Served) -> None:
    coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")


def _declare(coordinator: Served, members: dict[str, Participant], run: RunSpec) -> None:
    """Everybody declares while the run is paused, before a round can begin; then it goes on."""
    for name, member in members.items():
        member.declare("run", RANKS[name] if len(run.ranks) > 1 else 8, 10 + NAMES.index(name))
    coordinator.operator.expect(200, "POST", "/v1/runs/run/resume")


def _sampled(coordinator: Served, members: dict[str, Participant], number: int) -> list[str]:
    """The names of the round's participants, in the order of `members`; waits until it has begun."""
    anybody = next(iter(members.values()))
    while coordinator.round("run", number)["summary"]["state"] != "COLLECTING":
        anybody.call("GET", "/v1/runs/run/task", params={"wait": 1})
    drawn = {one["name"] for one in coordinator.round("run", number)["participants"]}
    assert len(drawn) == 4
    return [name for name in members if name in drawn]


def _upload_all(run: RunSpec, members: dict[str, Participant], names: Sequence[str], number: int) -> None:
    for name in names:
        data, task = _update(run, members[name], name, number)
        examples = 10 if number == 1 else 10 + NAMES.index(name)
        members[name].upload(task, data, examples=examples)


def _update(run: RunSpec, member: Participant, name: str, number: int) -> tuple[bytes, dict[str, Any]]:
    """What somebody sends, and the task that it answers: of the name and the round alone, but for what is not trained."""
    task, index = member.task("run"), NAMES.index(name)
    made = _tied(run, task["rank"], index) if number == 1 else tensors(run, task["rank"], seed=10 * number + index)
    served = load(member.download(task))
    frozen = {"B": "lora_A", "A": "lora_B"}.get(task["trainable"], "nothing")
    return encode({key: served[key] if frozen in key else tensor for key, tensor in made.items()}), task


def _tied(run: RunSpec, rank: int, index: int) -> dict[str, Tensor]:
    """Directions of one's own, orthogonal to those of all others, and of one size: singular values are tied.

    Rounding decides which of them are served, and the order of the sums decides how it rounds.
    """
    made = tensors(run, rank, seed=0)
    for key, tensor in made.items():
        if "lora_" in key:
            n = max(tensor.shape)
            directions = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n)).double()).Q
            own = directions[:, [(4 * index + column) % n for column in range(rank)]].float()
            made[key] = own.mT if "lora_A" in key else own
    return made


def _publish(coordinator: Served, number: int) -> None:
    while coordinator.round("run", number)["summary"]["state"] != "PUBLISHED":
        coordinator.work()
    coordinator.worker = Worker(coordinator.store, coordinator.blobs, coordinator.settings)  # another one each round


def _published(coordinator: Served) -> list[tuple[Any, ...]]:
    with coordinator.store.reading() as tx:
        whole = tx.session.execute(select(Adapter.number, Adapter.sha256)).all()
        slices = tx.session.execute(select(Slice.number, Slice.ranks_sha256, Slice.sha256)).all()
    return sorted((str(row[0]), *row[1:]) for row in (*whole, *slices))
