"""Participants that hold more than they train: what they are served, and what counts of their updates."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from flexlora_server.worker.replay import replay
from flexlora_shared.messages.records import RoundRecord
from tests.server.aggregation import oracle
from tests.server.aggregation.oracle import Matrix
from tests.support.databases import MOSTLY_ON_SQLITE, ON_SQLITE
from tests.support.kit import Participant, Served

PREFIX = "base_model.model."
MODULES = {
    "layers.0.q_proj": (40, 48),
    "layers.0.up_proj": (12, 40),
    "layers.1.q_proj": (36, 52),
}  # one is capped at 12
LARGEST, ALPHA = 16, 16.0
RUN: dict[str, Any] = {
    "modules": [{"name": name, "out_features": d, "in_features": k} for name, (d, k) in MODULES.items()],
    "ranks": [2, 4, 8, LARGEST],
    "rounds": 5,
    "strategy": "flexlora-residual",
    "scaling": {"alpha": ALPHA},  # so that each rank has a scaling of its own
    "late_updates": "next-round",
    "error_bound": 1.0,
}


@dataclass(frozen=True)
class Person:
    """What one participant declares, and the dtype of what it sends."""

    rank: int
    hold_rank: int | None
    examples: int
    pattern: Mapping[str, int]
    dtype: torch.dtype = torch.float32

    def trains(self, module: str) -> int:
        own = next((rank for key, rank in self.pattern.items() if module.endswith(key)), self.rank)
        return min(own, *MODULES[module])

    def holds(self, module: str) -> int:
        return min(max(self.trains(module), self.hold_rank or 0), *MODULES[module])


PEOPLE = [
    Person(2, 16, 60, {}),
    Person(4, 8, 25, {}, dtype=torch.bfloat16),
    Person(2, 4, 10, {"up_proj": 8}),
    Person(8, 8, 7, {}),
    Person(8, None, 33, {}, dtype=torch.float16),
    Person(2, 16, 40, {}),  # comes late
]


def factors(tensors: Mapping[str, torch.Tensor], module: str) -> tuple[Matrix, Matrix]:
    A, B = (oracle.to_numpy(tensors[f"{PREFIX}{module}.lora_{which}.weight"]) for which in "AB")
    return A, B


def trained(person: Person, slice_: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The first directions of what was served, each number moved a little, in the person's dtype."""
    generator, moved = torch.Generator().manual_seed(seed), {}
    for module in MODULES:
        rank = person.trains(module)
        for which in "AB":
            key = f"{PREFIX}{module}.lora_{which}.weight"
            served = slice_[key][:rank] if which == "A" else slice_[key][:, :rank]
            moved[key] = (served + 0.1 * torch.randn(served.shape, generator=generator)).to(person.dtype).contiguous()
    return moved


def sent(member: Participant, person: Person, task: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Announce and send an update with the alphas of its slice; its id, before the commit."""
    alphas = {module: ALPHA * person.trains(module) / person.holds(module) for module in MODULES}
    told = {"alpha": ALPHA, "alpha_pattern": alphas, "examples": person.examples}
    data = save(dict(tensors))
    upload: str = member.announce(task, data, **told)["id"]
    member.send(upload, data)
    return upload


def change(person: Person, module: str, slice_: Mapping[str, Any], update: Mapping[str, Any]) -> Matrix:
    """What an update changed in the directions that it was trained from, dense."""
    scaling, rank = ALPHA / person.holds(module), person.trains(module)
    A0, B0 = factors(slice_, module)
    A, B = factors(update, module)
    return scaling * (np.asarray(B @ A) - B0[:, :rank] @ A0[:rank])


def whole(coordinator: Served, number: int) -> dict[str, Matrix]:
    """The published global update of each module, dense."""
    path = f"/v1/runs/run/rounds/{number}/adapter?rank={LARGEST}"
    tensors = load(coordinator.operator.call("GET", path).content)
    dense = {}
    for module in MODULES:
        A, B = factors(tensors, module)
        dense[module] = ALPHA / len(A) * np.asarray(B @ A)
    return dense


def assemble(coordinator: Served, people: list[Person], **changes: Any) -> list[Participant]:
    coordinator.run(min_clients=len(people), min_updates=1, **RUN | changes)
    members = [coordinator.enroll(f"p{index}") for index in range(len(people))]
    declare(members, people)
    return members


def declare(members: list[Participant], people: list[Person]) -> None:
    for member, person in zip(members, people, strict=True):
        member.declare("run", person.rank, person.examples, person.pattern, person.hold_rank)


@pytest.mark.parametrize(
    ("database_url", "dtype"),
    [
        ("sqlite", "float32"),
        pytest.param("postgresql", "bfloat16", marks=pytest.mark.slow),
        pytest.param("sqlite", "float16", marks=pytest.mark.slow),
    ],
    indirect=["database_url"],
)
def test_what_changed_is_what_counts(coordinator: Served, dtype: str) -> None:
    """Mixed ranks, held ranks, patterns and dtypes, a capped module and a late update, against float64."""
    members = assemble(coordinator, PEOPLE, upload_dtype=dtype)
    late, slices, updates, uploads = len(PEOPLE) - 1, [], [], []
    before = whole(coordinator, 0)
    for number in (1, 2):
        tasks = [member.task("run") for member in (members if number == 1 else members[:late])]
        slices.append([load(member.download(task)) for member, task in zip(members, tasks, strict=False)])
        seeded = zip(PEOPLE, slices[-1], strict=False)
        updates.append([trained(person, slice_, 10 * number + i) for i, (person, slice_) in enumerate(seeded)])
        assert coordinator.round("run", number)["summary"]["state"] == "COLLECTING"
        uploads = [sent(*those) for those in zip(members, PEOPLE, tasks, updates[-1], strict=False)]
        for member, upload in zip(members[:late], uploads, strict=False):
            member.commit(upload)
        if number == 1:
            held_back = uploads[late]
        else:
            assert members[late].commit(held_back)["counts_in"] == 2
        coordinator.clock.advance(100)
        while coordinator.round("run", number)["summary"]["state"] != "PUBLISHED":
            coordinator.work()
        if number == 1:
            declare(members, PEOPLE)  # a sign of life: a round gathers all
            before = whole(coordinator, 1)
    for slice_, person in zip(slices[1], PEOPLE, strict=False):
        assert all(len(factors(slice_, module)[0]) == person.holds(module) for module in MODULES)
    counts = [float(person.examples) for person in PEOPLE]
    counts[late] /= math.sqrt(2)
    shares = [count / sum(counts) for count in counts]
    served = [*slices[1][:late], slices[0][late]]
    came = [*updates[1][:late], updates[0][late]]
    after, worst = whole(coordinator, 2), 0.0
    for module in MODULES:
        W = before[module] + sum(
            share * change(person, module, slice_, update)
            for share, person, slice_, update in zip(shares, PEOPLE, served, came, strict=True)
        )
        worst = max(worst, oracle.relative_error(after[module], oracle.truncated(W, LARGEST)))
    print(f"\nheld ranks, served in {dtype}: worst relative error {worst:.2e}")
    assert worst < (1e-5 if dtype == "float32" else 4e-3)  # what is served has the rounding of its dtype


@ON_SQLITE
def test_options_and_filters_go_by_what_is_trained(coordinator: Served) -> None:
    """Leak and shrink of mixed held ranks, one far change clipped, against float64; and the round's record says all of it."""
    people, leak, shrink, bound = PEOPLE[:5], 0.2, 0.5, 10.0
    members = assemble(
        coordinator,
        people,
        strategy_options={"leak": leak, "shrink": shrink},
        robust=[{"kind": "norm-clip", "bound": bound}],
    )
    slices: list[dict[str, torch.Tensor]] = []
    updates: list[dict[str, torch.Tensor]] = []
    for number in (1, 2):
        before = whole(coordinator, number - 1)
        tasks = [member.task("run") for member in members]
        slices = [load(member.download(task)) for member, task in zip(members, tasks, strict=True)]
        updates = [
            trained(p, slice_, 10 * number + i) for i, (p, slice_) in enumerate(zip(people, slices, strict=True))
        ]
        for name, tensor in updates[0].items():
            updates[0][name] = 4 * tensor if "lora_B" in name else tensor
        for those in zip(members, people, tasks, updates, strict=True):
            those[0].commit(sent(*those))
        assert coordinator.work() == 1
    D = {m: [change(*those) for those in zip(people, [m] * 5, slices, updates, strict=True)] for m in MODULES}
    lengths = np.sqrt(np.sum([[np.sum(one**2) for one in D[module]] for module in MODULES], axis=0))
    left = np.minimum(1, bound / lengths)
    assert (left < 1).any(), f"the filter has done something: {lengths}"
    assert (left == 1).any()
    shares = np.array([person.examples for person in people]) / sum(person.examples for person in people)
    after = whole(coordinator, 2)
    for module in MODULES:
        served = [s - d for s, d in zip(_sent_products(people, module, updates), D[module], strict=True)]
        changes = [c * one for c, one in zip(left, D[module], strict=True)]
        W = (1 - leak) * before[module] + sum(
            p * (one + leak * start) for p, one, start in zip(shares, changes, served, strict=True)
        )
        rank = min(LARGEST, *MODULES[module])
        spread = sum(p * np.sum(one**2) for p, one in zip(shares, changes, strict=True))
        spread -= np.sum(sum(p * one for p, one in zip(shares, changes, strict=True)) ** 2)
        ranks = np.array([person.trains(module) for person in people])
        absent = np.array([shares[ranks <= j].sum() for j in range(rank)])
        U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
        shrunk = np.maximum(0, sigma[:rank] - shrink * (spread / rank) ** 0.5 * absent)
        assert oracle.relative_error(after[module], (U[:, :rank] * shrunk) @ Vt[:rank]) < 1e-5
    for number in (1, 2):
        record = coordinator.operator.expect(200, "GET", f"/v1/runs/run/rounds/{number}/record")
        assert sorted(one["update"].get("hold_rank") or 0 for one in record["inputs"]) == [0, 4, 8, 8, 16]
        again = replay(RoundRecord.model_validate_json(json.dumps(record)), coordinator.settings.data_dir)
        assert again.faults == ()


def _sent_products(people: list[Person], module: str, updates: list[dict[str, torch.Tensor]]) -> list[Matrix]:
    own = [factors(update, module) for update in updates]
    return [ALPHA / person.holds(module) * np.asarray(B @ A) for person, (A, B) in zip(people, own, strict=True)]


@ON_SQLITE
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_idle_round_changes_nothing(coordinator: Served, dtype: str) -> None:
    """Everybody sends back the directions that it would have trained, as they were served: not even the last bit moves."""
    people = [Person(2, 16, 60, {}), Person(4, 8, 25, {}), Person(2, 4, 10, {"up_proj": 8}), Person(4, 4, 3, {})]
    members = assemble(coordinator, people, upload_dtype=dtype)
    for number in (1, 2, 3):
        for index, (member, person) in enumerate(zip(members, people, strict=True)):
            task = member.task("run")
            slice_ = load(member.download(task))
            first = trained(person, slice_, index)
            idle = {
                key: slice_[key][: len(t)] if "lora_A" in key else slice_[key][:, : t.shape[1]].contiguous()
                for key, t in first.items()
            }
            member.commit(sent(member, person, task, first if number == 1 else idle))
        assert coordinator.work() == 1
    etags = [
        coordinator.operator.call("HEAD", f"/v1/runs/run/rounds/{number}/adapter?rank=16").headers["etag"]
        for number in (1, 2, 3)
    ]
    assert etags[0] == etags[1] == etags[2]
    assert coordinator.round("run", 3)["summary"]["aggregation"]["change_norm"] == 0, "filters see no change either"
    by_rank = coordinator.round("run", 2)["summary"]["by_rank"]
    assert [(count["rank"], count["hold_rank"]) for count in by_rank] == [(2, 4), (2, 16), (4, 4), (4, 8)]
    page = coordinator.operator.call("GET", "/").text
    assert "1 at rank 2, holding 16" in page
    assert "1 at rank 4<" in page, "it holds no more"


@MOSTLY_ON_SQLITE
def test_a_round_keeps_the_ranks_it_began_with(coordinator: Served) -> None:
    (member,) = assemble(coordinator, [Person(2, 8, 10, {})])
    first = member.task("run")
    assert (first["rank"], first["hold_rank"], first["trainable"]) == (2, 8, "prefix")
    assert "rank=8" in first["adapter"]["href"]
    member.declare("run", 4, 10, None, 16)
    again = member.task("run")
    assert (again["rank"], again["hold_rank"]) == (2, 8)
    slice_ = load(member.download(first))
    update = trained(Person(2, 8, 10, {}), slice_, 1)
    body = member.problem(
        "rank-mismatch", "POST", "/v1/runs/run/rounds/1/uploads", json=_announced(save(update), hold_rank=16)
    )
    assert body["context"] == {"rank": 2, "rank_pattern": {}, "hold_rank": 8}
    path = "/v1/runs/run/rounds/1/uploads"
    whole_slice = _announced(save(update), hold_rank=8) | {"trainable": "slice"}
    assert member.problem("invalid-request", "POST", path, json=whole_slice)["context"] == {"trainable": "prefix"}
    member.commit(sent(member, Person(2, 8, 10, {}), first, update))
    assert coordinator.work() == 1
    last = member.task("run")
    assert (last["rank"], last["hold_rank"]) == (4, 16)
    member.declare("run", 4, 10, None, 4)  # as much as it trains: as if nothing was said of it
    assert coordinator.round("run", 1)["participants"][0]["hold_rank"] == 8


def _announced(data: bytes, hold_rank: int) -> dict[str, Any]:
    return {
        "rank": 2,
        "hold_rank": hold_rank,
        "alpha": 4.0,
        "trainable": "prefix",
        "examples": 10,
        "size": len(data),
        "sha256": "0" * 64,
    }


@ON_SQLITE
def test_a_failed_participant_gets_its_task_at_what_it_declares_then(coordinator: Served) -> None:
    (member,) = assemble(coordinator, [Person(4, 16, 10, {})])
    task = member.task("run")
    failure = {"attempt": task["attempt"], "kind": "memory", "reason": "too large"}
    member.expect(204, "PUT", "/v1/runs/run/rounds/1/failure", json=failure)
    member.declare("run", 4, 10, None, 8)
    again = member.task("run")
    assert (again["rank"], again["hold_rank"], again["trainable"]) == (4, 8, "prefix")


@ON_SQLITE
def test_who_may_not_hold_more(coordinator: Served) -> None:
    member = coordinator.enroll()
    for number, (strategy, rank, hold_rank, said) in enumerate(
        (
            ("flexlora", 2, 8, "counts an update by what it is"),
            ("hetlora", 2, 8, "counts an update by what it is"),
            ("flora", 2, 8, "counts an update by what it is"),
            ("flexlora-residual", 8, 2, "is less than rank 8"),
            ("flexlora-residual", 2, 16, "Rank 16 is not allowed"),
        )
    ):
        name = f"run-{number}"
        coordinator.run(name, **RUN | {"strategy": strategy, "ranks": [2, 8]})
        told = {"rank": rank, "hold_rank": hold_rank, "examples": 10}
        body = member.problem("rank-not-allowed", "PUT", f"/v1/runs/{name}/declaration", json=told)
        assert said in body["detail"]
        member.declare(name, rank, hold_rank=rank)
        assert member.task(name)["trainable"] == {"flora": "fresh"}.get(strategy, "slice")
