"""The mathematics through HTTP alone, against dense float64 numpy: what is uploaded, and what every rank is served.

The oracle knows nothing of the coordinator's code. It works on the values that were uploaded, so rounded to the file's dtype.
`pytest -s` prints the worst errors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tests.server.aggregation import oracle
from tests.server.aggregation.oracle import Matrix
from tests.support.databases import ON_SQLITE
from tests.support.kit import Participant, Served

PROMISED = 1e-5
PREFIX = "base_model.model."
MODULES = {"layers.0.q_proj": (40, 48), "layers.0.up_proj": (64, 40), "layers.1.q_proj": (36, 52)}
RUN: dict[str, Any] = {
    "modules": [{"name": name, "out_features": d, "in_features": k} for name, (d, k) in MODULES.items()],
    "extra": [{"name": "head.weight", "shape": [3, 5]}, {"name": "head.bias", "shape": [3]}],
    "ranks": [2, 3, 5, 8, 16],
    "rounds": 50,
}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Person:
    """One participant: what it declares, how it scales, and the dtype of the file it sends."""

    rank: int
    alpha: float
    examples: int
    pattern: Mapping[str, int]
    rslora: bool = False
    dtype: torch.dtype = torch.float32

    def rank_of(self, module: str) -> int:
        return next((rank for key, rank in self.pattern.items() if module.endswith(key)), self.rank)

    def scaling_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return self.alpha / math.sqrt(rank) if self.rslora else self.alpha / rank


PEOPLE = [
    Person(2, 4.0, 100, {}),
    Person(3, 7.5, 37, {}, dtype=torch.float16),
    Person(5, 1.0, 250, {}, rslora=True),
    Person(8, 16.0, 64, {}, dtype=torch.bfloat16),
    Person(8, 24.0, 1, {"q_proj": 3, "up_proj": 16}),
    Person(16, 32.0, 411, {}),
]
MIXED = [Person(rank, 2.0 * rank, n, {}) for rank, n in ((2, 25), (3, 10), (5, 5), (8, 20), (8, 10), (16, 30))]


def assemble(coordinator: Served, people: list[Person], **changes: Any) -> list[Participant]:
    """A started run that begins rounds when all of these people are there."""
    coordinator.run(min_clients=len(people), min_updates=len(people), **RUN | changes)
    members = []
    for person in people:
        member = coordinator.enroll()
        member.declare("run", person.rank, person.examples, person.pattern)
        members.append(member)
    return members


def trained(person: Person, seed: int) -> Tensors:
    """Random factors of a plausible size in the person's dtype."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for module, (d, k) in MODULES.items():
        rank = person.rank_of(module)
        made[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, k, generator=generator) / k**0.5
        made[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(d, rank, generator=generator) / d**0.5
    made[f"{PREFIX}head.weight"] = torch.randn(3, 5, generator=generator)
    made[f"{PREFIX}head.bias"] = torch.randn(3, generator=generator)
    return {key: tensor.to(person.dtype) for key, tensor in made.items()}


def send(member: Participant, person: Person, task: dict[str, Any], tensors: Tensors) -> None:
    fields = {"alpha": person.alpha, "use_rslora": person.rslora, "examples": person.examples}
    member.upload(task, save(tensors), **fields)


def product(tensors: Tensors, module: str, scaling: float) -> Matrix:
    A = oracle.to_numpy(tensors[f"{PREFIX}{module}.lora_A.weight"])
    B = oracle.to_numpy(tensors[f"{PREFIX}{module}.lora_B.weight"])
    return np.asarray(scaling * (B @ A), dtype=np.float64)


def served(coordinator: Served, number: int, rank: int, pattern: str = "{}") -> dict[str, Matrix]:
    """Each module's product of a slice, scaled as its own adapter_config.json says; and the extra tensors."""
    query = {"rank": rank, "pattern": pattern}
    path = f"/v1/runs/run/rounds/{number}"
    tensors = load(coordinator.operator.call("GET", f"{path}/adapter", params=query).content)
    config = coordinator.operator.expect(200, "GET", f"{path}/adapter-config", params=query)
    products = {}
    for module in MODULES:
        own = next((r for key, r in config["rank_pattern"].items() if module.endswith(key)), config["r"])
        alpha = next((a for key, a in config["alpha_pattern"].items() if module.endswith(key)), config["lora_alpha"])
        assert tensors[f"{PREFIX}{module}.lora_A.weight"].shape[0] == own
        products[module] = product(tensors, module, alpha / math.sqrt(own) if config["use_rslora"] else alpha / own)
    return products | {name: oracle.to_numpy(tensors[PREFIX + name]) for name in ("head.weight", "head.bias")}


def weights(people: list[Person]) -> list[float]:
    total = sum(person.examples for person in people)
    return [person.examples / total for person in people]


def learn(coordinator: Served, members: list[Participant], people: list[Person], seed: int = 0) -> list[Tensors]:
    """One round in which everyone sends something new; what was sent."""
    sent = []
    for index, (member, person) in enumerate(zip(members, people, strict=True)):
        tensors = trained(person, 100 * seed + index)
        send(member, person, member.task("run"), tensors)
        sent.append(tensors)
    assert coordinator.work() == 1
    return sent


def idle(coordinator: Served, members: list[Participant], people: list[Person]) -> None:
    """One round in which everyone sends back what it was served."""
    for member, person in zip(members, people, strict=True):
        task = member.task("run")
        send(member, person, task, load(member.download(task)))
    assert coordinator.work() == 1


def average(sent: list[Tensors], people: list[Person], module: str) -> Matrix:
    shares = zip(sent, people, weights(people), strict=True)
    return oracle.averaged(
        oracle.Upload(
            oracle.to_numpy(tensors[f"{PREFIX}{module}.lora_A.weight"]),
            oracle.to_numpy(tensors[f"{PREFIX}{module}.lora_B.weight"]),
            person.scaling_of(module),
            weight,
        )
        for tensors, person, weight in shares
    )


@ON_SQLITE
@pytest.mark.parametrize("scaling", [{"alpha": 16.0}, {"alpha_per_rank": 2.0, "use_rslora": True}], ids=str)
@pytest.mark.parametrize("strategy", ["flexlora", "flexlora-residual"])
def test_every_slice_is_the_oracles(coordinator: Served, strategy: str, scaling: dict[str, Any]) -> None:
    """Six participants of mixed ranks, alphas, dtypes, patterns and weights. From W = 0 both strategies agree."""
    members = assemble(coordinator, PEOPLE, strategy=strategy, scaling=scaling)
    sent = learn(coordinator, members, PEOPLE)
    W = {module: average(sent, PEOPLE, module) for module in MODULES}
    worst = 0.0
    for rank in RUN["ranks"]:
        slices = served(coordinator, 1, rank)
        for module in MODULES:
            worst = max(worst, oracle.relative_error(slices[module], oracle.truncated(W[module], rank)))
    mixed = served(coordinator, 1, 5, '{"q_proj": 2, "up_proj": 16}')
    for module, rank in (("layers.0.q_proj", 2), ("layers.0.up_proj", 16), ("layers.1.q_proj", 2)):
        worst = max(worst, oracle.relative_error(mixed[module], oracle.truncated(W[module], rank)))
    for name in ("head.weight", "head.bias"):
        plain = sum(w * oracle.to_numpy(t[PREFIX + name]) for t, w in zip(sent, weights(PEOPLE), strict=True))
        worst = max(worst, oracle.relative_error(slices[name], np.asarray(plain)))
    print(f"\n{strategy} {scaling}: worst relative error {worst:.2e}")
    assert worst < PROMISED
    check_figures(coordinator, W)


def check_figures(coordinator: Served, W: dict[str, Matrix]) -> None:
    """The round's reported singular values and energies are the oracle's."""
    for module in coordinator.round("run", 1)["modules"]:
        dense = W[module["name"]]
        values = oracle.singular_values(dense)
        np.testing.assert_allclose(
            module["singular_values"], values[: len(module["singular_values"])], atol=1e-5 * values[0]
        )
        kept = [energy["share"] for energy in module["energy_kept"]]
        np.testing.assert_allclose(kept, oracle.energy_kept(dense, RUN["ranks"]), rtol=1e-5)


@pytest.mark.slow
@ON_SQLITE
def test_nearly_idle_rounds_change_nearly_nothing_with_the_residual_strategy(coordinator: Served) -> None:
    """Nobody sends the served bytes exactly: alpha is doubled and B halved and rounded, so that everything is decomposed anew."""
    people = [Person(p.rank, 3.0 * p.rank, p.examples, {}) for p in MIXED]  # served at scaling 2, sent at 3
    members = assemble(coordinator, people, strategy="flexlora-residual")
    learn(coordinator, members, people)
    before, worst = served(coordinator, 1, 16), 0.0
    for number in range(2, 12):
        for member, person in zip(members, people, strict=True):
            task = member.task("run")
            tensors = load(member.download(task))
            changed = {key: t * (2 / 3) if "lora_B" in key else t for key, t in tensors.items()}
            send(member, person, task, changed)
        assert coordinator.work() == 1
        after = served(coordinator, number, 16)
        worst = max(worst, *(oracle.relative_error(after[name], before[name]) for name in before))
    print(f"\nflexlora-residual, 10 rounds idle but for rounding: worst relative change {worst:.2e}")
    assert worst < PROMISED


@ON_SQLITE
def test_the_papers_strategy_decays_as_predicted(coordinator: Served) -> None:
    """In t idle rounds sigma_j falls by c_j ** t, c_j the weight share of the participants with rank of at least j."""
    members = assemble(coordinator, MIXED, strategy="flexlora")
    learn(coordinator, members, MIXED)
    before = served(coordinator, 1, 16)
    share = np.array([sum(p.examples for p in MIXED if p.rank >= j) for j in range(1, 17)]) / 100
    worst = 0.0
    for rounds in range(1, 4):
        idle(coordinator, members, MIXED)
        after = served(coordinator, 1 + rounds, 16)
        for module in MODULES:
            U, sigma, Vt = np.linalg.svd(before[module], full_matrices=False)
            predicted = (U[:, :16] * (sigma[:16] * share**rounds)) @ Vt[:16]
            worst = max(worst, oracle.relative_error(after[module], predicted))
    kept = np.linalg.norm(after["layers.0.q_proj"]) / np.linalg.norm(before["layers.0.q_proj"])
    print(f"\nflexlora, 3 idle rounds: worst distance from the predicted decay {worst:.2e}; norm left {kept:.2f}")
    assert worst < PROMISED
    assert kept < 0.9


@ON_SQLITE
def test_with_equal_ranks_both_strategies_agree(coordinator: Served) -> None:
    people = [Person(5, alpha, examples, {}) for alpha, examples in ((10.0, 7), (10.0, 1), (4.0, 12))]
    results: dict[str, list[dict[str, Matrix]]] = {}
    for strategy in ("flexlora", "flexlora-residual"):
        name = f"run-{strategy}"
        results[strategy] = three_rounds(coordinator, name, strategy, people)
    worst = max(
        oracle.relative_error(one[module], other[module])
        for one, other in zip(*results.values(), strict=True)
        for module in MODULES
    )
    print(f"\nflexlora and flexlora-residual at equal ranks, 3 rounds: worst relative difference {worst:.2e}")
    assert worst < PROMISED


def three_rounds(coordinator: Served, name: str, strategy: str, people: list[Person]) -> list[dict[str, Matrix]]:
    """The same three rounds of the same updates; the products served at rank 5 after each."""
    coordinator.run(
        name, min_clients=3, min_updates=3, **RUN | {"strategy": strategy, "ranks": [5], "scaling": {"alpha": 7.0}}
    )
    members = [coordinator.enroll() for _ in people]
    for member, person in zip(members, people, strict=True):
        member.declare(name, person.rank, person.examples)
    products = []
    for number in range(1, 4):
        for index, (member, person) in enumerate(zip(members, people, strict=True)):
            send(member, person, member.task(name), trained(person, 10 * number + index))
        assert coordinator.work() == 1
        path = f"/v1/runs/{name}/rounds/{number}/adapter?rank=5"
        tensors = load(coordinator.operator.call("GET", path).content)
        products.append({module: product(tensors, module, 7.0 / 5) for module in MODULES})
    return products


@ON_SQLITE
def test_the_residual_strategy_follows_its_formula(coordinator: Served) -> None:
    """D_new = D_old + sum of p_i (s_i B_i A_i - served_i), over two learning rounds at mixed ranks."""
    members = assemble(coordinator, PEOPLE, strategy="flexlora-residual", scaling={"alpha": 16.0})
    learn(coordinator, members, PEOPLE)
    D_old = served(coordinator, 1, 16)
    slices = []
    for member, person in zip(members, PEOPLE, strict=True):
        task = member.task("run")
        tensors = load(member.download(task))
        slices.append({m: product(tensors, m, 16.0 / person.rank_of(m)) for m in MODULES})
    sent = learn(coordinator, members, PEOPLE, seed=1)
    worst = 0.0
    for module in MODULES:
        W = D_old[module] + average(sent, PEOPLE, module)
        W = W - sum(w * served_products[module] for served_products, w in zip(slices, weights(PEOPLE), strict=True))
        for rank in RUN["ranks"]:
            got = served(coordinator, 2, rank)[module]
            worst = max(worst, oracle.relative_error(got, oracle.truncated(W, rank)))
    print(f"\nflexlora-residual, second round: worst relative error {worst:.2e}")
    assert worst < PROMISED


@ON_SQLITE
def test_fedavg_is_the_plain_average_of_the_factors(coordinator: Served) -> None:
    people = [Person(8, 16.0, examples, {}) for examples in (3, 10, 1)]
    members = assemble(coordinator, people, strategy="fedavg", ranks=[8])
    sent = learn(coordinator, members, people)
    tensors = load(coordinator.operator.call("GET", "/v1/runs/run/rounds/1/adapter?rank=8").content)
    worst = 0.0
    for key, tensor in tensors.items():
        plain = sum(w * oracle.to_numpy(uploaded[key]) for uploaded, w in zip(sent, weights(people), strict=True))
        worst = max(worst, oracle.relative_error(oracle.to_numpy(tensor), np.asarray(plain)))
    print(f"\nfedavg: worst relative error of a factor {worst:.2e}")
    assert worst < PROMISED


@ON_SQLITE
@pytest.mark.parametrize(
    ("dtype", "rounding", "options"),
    [
        ("float32", PROMISED, {}),
        pytest.param("float16", 2e-3, {}, marks=pytest.mark.slow),
        ("bfloat16", 1.6e-2, {"shrink": 1e-3}),
    ],
)
def test_idle_rounds_change_nothing_with_the_residual_strategy(
    coordinator: Served, dtype: str, rounding: float, options: dict[str, float]
) -> None:
    """Not a bit, whatever precision is served: however many rounds follow, nothing adds up, with `shrink` neither."""
    members = assemble(coordinator, MIXED, strategy="flexlora-residual", upload_dtype=dtype, strategy_options=options)
    sent = learn(coordinator, members, MIXED)
    before = served(coordinator, 1, 16)
    for module in MODULES:
        W = oracle.truncated(average(sent, MIXED, module), 16)
        assert oracle.relative_error(before[module], W) < rounding
    for number in range(2, 4):
        idle(coordinator, members, MIXED)
        after = served(coordinator, number, 16)
        assert all(oracle.relative_error(after[name], before[name]) == 0 for name in before)
