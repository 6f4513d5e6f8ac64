"""Rounds of each strategy through HTTP, against dense float64 numpy: HetLoRA, FFA-LoRA and FLoRA."""

from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.aggregation.strategies import registry
from flexlora_shared import plugins
from flexlora_shared.plugins import STRATEGY_GROUP
from tests.server.aggregation import oracle
from tests.server.aggregation.oracle import Matrix
from tests.server.api.test_mathematics import (
    MODULES,
    PREFIX,
    PROMISED,
    RUN,
    Person,
    Tensors,
    assemble,
    average,
    learn,
    product,
    send,
    served,
    trained,
    weights,
)
from tests.support.databases import ON_SQLITE
from tests.support.kit import Participant, Served, encode, tensors
from tests.support.plugins import install

pytestmark = ON_SQLITE
PEOPLE = [
    Person(2, 4.0, 100, {}),
    Person(3, 7.5, 37, {}, dtype=torch.float16),
    Person(8, 16.0, 64, {"q_proj": 3}, dtype=torch.bfloat16),
    Person(5, 1.0, 250, {}, rslora=True),
]
EQUALS = [Person(5, 10.0, 7, {}), Person(5, 4.0, 12, {}), Person(5, 10.0, 1, {}, rslora=True)]


def key(module: str, factor: str) -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"


def check_extra(coordinator: Served, sent: list[Tensors], people: list[Person], number: int = 1) -> None:
    """Extra tensors are plain weighted averages, whatever the strategy."""
    served_slice = served(coordinator, number, max(person.rank for person in people))
    for name in ("head.weight", "head.bias"):
        plain = sum(
            w * oracle.to_numpy(uploaded[PREFIX + name]) for uploaded, w in zip(sent, weights(people), strict=True)
        )
        assert oracle.relative_error(served_slice[name], np.asarray(plain)) < PROMISED


def padded(sent: list[Tensors], module: str, r_max: int) -> tuple[Matrix, Matrix, int]:
    """HetLoRA's averages of the zero-padded factors by its formula, and the highest rank present."""
    d, k = MODULES[module]
    A, B = np.zeros((r_max, k)), np.zeros((d, r_max))
    scalings = [person.scaling_of(module) for person in PEOPLE]
    products = [product(uploaded, module, scaling) for uploaded, scaling in zip(sent, scalings, strict=True)]
    sizes = np.array([w * np.linalg.norm(W) for w, W in zip(weights(PEOPLE), products, strict=True)])
    for uploaded, scaling, q in zip(sent, scalings, sizes / sizes.sum(), strict=True):
        rank = uploaded[key(module, "A")].shape[0]
        A[:rank] += q * oracle.to_numpy(uploaded[key(module, "A")])
        B[:, :rank] += q * scaling * oracle.to_numpy(uploaded[key(module, "B")])
    return A, B, max(uploaded[key(module, "A")].shape[0] for uploaded in sent)


def test_hetlora_serves_prefixes_of_the_padded_averages(coordinator: Served) -> None:
    members = assemble(coordinator, PEOPLE, strategy="hetlora", scaling={"alpha": 16.0})
    assert members[0].task("run")["trainable"] == "slice"
    path = "/v1/runs/run/rounds/{}/adapter?rank={}"
    before = load(coordinator.operator.call("GET", path.format(0, 16)).content)
    sent = learn(coordinator, members, PEOPLE)
    for rank in RUN["ranks"]:
        slices = load(coordinator.operator.call("GET", path.format(1, rank)).content)
        for module in MODULES:
            A, B, present = padded(sent, module, 16)
            A[present:] = oracle.to_numpy(before[key(module, "A")])[present:]  # still trains where nobody was
            assert oracle.relative_error(oracle.to_numpy(slices[key(module, "A")]), A[:rank]) < PROMISED
            expected = B[:, :rank] / (16.0 / rank)
            assert oracle.relative_error(oracle.to_numpy(slices[key(module, "B")]), expected) < PROMISED
    check_extra(coordinator, sent, PEOPLE)


def with_A(tensors: Tensors, slice_: Tensors) -> Tensors:
    """What an agent sends that trained lora_B and the head alone."""
    return tensors | {name: tensor.to(tensors[name].dtype) for name, tensor in slice_.items() if "lora_A" in name}


def learn_B(coordinator: Served, members: list[Participant], people: list[Person], seed: int) -> list[Tensors]:
    sent = []
    for index, (member, person) in enumerate(zip(members, people, strict=True)):
        task = member.task("run")
        assert task["trainable"] == "B"
        sent.append(with_A(trained(person, 100 * seed + index), load(member.download(task))))
        send(member, person, task, sent[-1])
    assert coordinator.work() == 1
    return sent


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ffa_is_exact_and_never_moves_A(coordinator: Served, dtype: str) -> None:
    """Served and sent in the run's dtype: A is sent bit for bit, and only the served B is rounded."""
    people = [Person(p.rank, p.alpha, p.examples, {}, p.rslora, getattr(torch, dtype)) for p in EQUALS]
    members = assemble(coordinator, people, strategy="ffa", ranks=[5], scaling={"alpha": 8.0}, upload_dtype=dtype)
    path, bound = "/v1/runs/run/rounds/{}/adapter?rank=5", {"float32": PROMISED, "float16": 2e-3, "bfloat16": 1.6e-2}
    first = load(coordinator.operator.call("GET", path.format(0)).content)
    for number in (1, 2):
        sent = learn_B(coordinator, members, people, number)
        served_slice, now = (
            served(coordinator, number, 5),
            load(coordinator.operator.call("GET", path.format(number)).content),
        )
        for module in MODULES:
            assert oracle.relative_error(served_slice[module], average(sent, people, module)) < bound[dtype]
            assert torch.equal(now[key(module, "A")], first[key(module, "A")])


def test_ffa_refuses_a_trained_A(coordinator: Served) -> None:
    """By one number's last bit; the participant may send a good one after it, in another dtype too."""
    people = [Person(5, 10.0, 7, {}, dtype=torch.bfloat16)]
    (member,) = assemble(coordinator, people, strategy="ffa", ranks=[5])
    task = member.task("run")
    good = with_A(trained(people[0], 1), load(member.download(task)))
    name = key("layers.1.q_proj", "A")
    bad = good[name].clone()
    bad[4, 51] = torch.nextafter(bad[4, 51], torch.tensor(1.0, dtype=torch.bfloat16))
    data = save(good | {name: bad})
    upload = member.announce(task, data, alpha=10.0)["id"]
    member.send(upload, data)
    body = member.problem("invalid-tensor", "PUT", f"/v1/uploads/{upload}/commit")
    assert body["context"]["tensor"] == name
    assert "this round trains lora_B alone" in body["detail"]
    assert "freeze lora_A" in body["detail"]
    send(member, people[0], task, good)
    assert coordinator.work() == 1


def test_ffa_looks_at_A_alone(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored B may be as large as all slices together: a commit does not read it."""
    people = [Person(5, 10.0, 7, {})]
    (member,) = assemble(coordinator, people, strategy="ffa", ranks=[5])
    task = member.task("run")
    good = with_A(trained(people[0], 1), load(member.download(task)))
    with monkeypatch.context() as patch:
        patch.delattr(NumpyGlobalAdapter, "Bt")
        send(member, people[0], task, good)
    assert coordinator.work() == 1


def test_rolora_refuses_the_factor_that_is_not_its_rounds(coordinator: Served) -> None:
    """In the first round A, in the second B, by one number's last bit; each round says what it trains."""
    people = [Person(5, 10.0, 7, {}, dtype=torch.bfloat16)]
    (member,) = assemble(coordinator, people, strategy="rolora", ranks=[5], upload_dtype="bfloat16")
    for number, (asked, frozen) in enumerate((("B", "A"), ("A", "B")), start=1):
        task = member.task("run")
        assert (task["round"], task["trainable"]) == (number, asked)
        slice_ = load(member.download(task))
        made = trained(people[0], number)
        good = made | {name: tensor for name, tensor in slice_.items() if f"lora_{frozen}" in name}
        name = key("layers.1.q_proj", frozen)
        bad = good[name].clone()
        bad[0, 0] = torch.nextafter(bad[0, 0], torch.tensor(1.0, dtype=torch.bfloat16))
        data = save(good | {name: bad})
        upload = member.announce(task, data, alpha=10.0)["id"]
        member.send(upload, data)
        body = member.problem("invalid-tensor", "PUT", f"/v1/uploads/{upload}/commit")
        assert body["context"]["tensor"] == name
        assert f"this round trains lora_{asked} alone" in body["detail"]
        assert f"freeze lora_{frozen}" in body["detail"]
        send(member, people[0], task, good)
        assert coordinator.work() == 1


@pytest.mark.parametrize(
    ("strategy", "asked"), [("flexlora", "slice"), ("ffa", "B"), ("fedsvd", "B"), ("rolora", "B"), ("flora", "fresh")]
)
def test_an_update_of_another_kind_is_refused_before_its_bytes(coordinator: Served, strategy: str, asked: str) -> None:
    """A fresh adapter has the tensors of a slice: only its sender can tell."""
    people = [Person(5, 10.0, 7, {})]
    (member,) = assemble(coordinator, people, strategy=strategy, ranks=[5])
    task, path = member.task("run"), "/v1/runs/run/rounds/1/uploads"
    assert task["trainable"] == asked
    announcement = {"rank": 5, "alpha": 10.0, "examples": 7, "size": 9000, "sha256": "0" * 64}
    for other in {"slice", "B", "A", "fresh"} - {asked}:
        body = member.problem("invalid-request", "POST", path, json=announcement | {"trainable": other})
        assert f"asks for updates that trained '{asked}' (`trainable` of the task), not '{other}'" in body["detail"]
        assert body["context"]["trainable"] == asked
    if asked != "slice":
        member.problem("invalid-request", "POST", path, json=announcement)  # says nothing, and so a slice
    member.problem("invalid-request", "POST", path, json=announcement | {"trainable": "biases"})
    member.announce(task, save(trained(people[0], 1)), alpha=10.0)


def test_ffa_bounds_B_by_itself_and_takes_an_A_beyond_the_bound(coordinator: Served) -> None:
    """A is the run's own; B may hide in the directions that A maps to little, and is served as it is."""
    people = [Person(5, 10.0, 7, {})]
    (member,) = assemble(coordinator, people, strategy="ffa", ranks=[5], norm_bound=1.0, extra=[])
    task = member.task("run")
    slice_ = load(member.download(task))
    assert all(tensor.norm() > 1 for name, tensor in slice_.items() if "lora_A" in name)
    small = {name: tensor + 0.01 if "lora_B" in name else tensor for name, tensor in slice_.items()}
    send(member, people[0], task, small)
    assert coordinator.work() == 1
    large = {name: tensor + 0.036 if "lora_B" in name else tensor for name, tensor in slice_.items()}
    data = save(large)
    upload = member.announce(member.task("run"), data, alpha=10.0)["id"]
    member.send(upload, data)
    body = member.problem("invalid-tensor", "PUT", f"/v1/uploads/{upload}/commit")
    assert "exceeds the run's bound" in body["detail"]
    assert body["context"]["tensor"] == key("layers.0.q_proj", "B")


def test_flora_adds_up_round_by_round(coordinator: Served) -> None:
    """Two rounds of ranks 2 to 5 fill rank 16 exactly once; then the best approximation is kept, and served at every rank."""
    people = [Person(2, 4.0, 100, {}), Person(5, 1.0, 250, {}, rslora=True)]
    members = assemble(coordinator, people, strategy="flora", scaling={"alpha": 16.0})
    D: dict[str, Any] = dict.fromkeys(MODULES, 0.0)
    for number in (1, 2, 3):
        assert members[0].task("run")["trainable"] == "fresh"
        sent = learn(coordinator, members, people, seed=number)
        for module in MODULES:
            D[module] = oracle.truncated(D[module] + average(sent, people, module), 16)
        for rank in RUN["ranks"]:
            slices = served(coordinator, number, rank)
            for module in MODULES:
                assert oracle.relative_error(slices[module], oracle.truncated(D[module], rank)) < PROMISED
        check_extra(coordinator, sent, people, number)


def test_flora_takes_mixed_ranks_patterns_alphas_and_dtypes(coordinator: Served) -> None:
    members = assemble(coordinator, PEOPLE, strategy="flora")
    total: dict[str, Any] = dict.fromkeys(MODULES, 0.0)
    for number in (1, 2):
        sent = learn(coordinator, members, PEOPLE, seed=number)
        for module in MODULES:
            total[module] = oracle.truncated(total[module] + average(sent, PEOPLE, module), 16)
            served_slice = served(coordinator, number, 16)[module]
            assert oracle.relative_error(served_slice, total[module]) < PROMISED


def test_a_strategy_of_another_package_and_what_agents_see_while_it_is_gone(
    coordinator: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = (
        "from flexlora_server.aggregation.strategies.registry import Strategy\n"
        "mine = Strategy('mine', module='tests.server.aggregation.strategies.uniform')\n"
    )
    install(monkeypatch, tmp_path, "mine", STRATEGY_GROUP, {"mine": "offer_of_mine:mine"}, offer_of_mine=offer)
    run = coordinator.run(strategy="mine")
    participant = coordinator.enroll()
    participant.declare("run", 2)
    task = participant.task("run")
    registry._offered.cache_clear()
    with monkeypatch.context() as gone:
        gone.setattr(plugins, "entry_points", lambda **_: EntryPoints())
        problem = participant.problem("unavailable", "GET", "/v1/runs/run/task", params={"wait": 0})
        assert "there is no strategy 'mine'" in problem["detail"]
    participant.upload(task, encode(tensors(run, 2)))
    assert coordinator.work() == 1
    assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
