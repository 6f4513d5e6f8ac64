"""Every strategy with every filter in every dtype through HTTP, two rounds each, against dense float64 numpy.

The oracle knows the slices that were downloaded and the factors that were uploaded, and weighs, filters and sums them by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from flexlora_server.aggregation.strategies.registry import strategy
from tests.server.aggregation import oracle
from tests.server.aggregation.oracle import Matrix, Upload
from tests.support.databases import ON_SQLITE
from tests.support.kit import Participant, Served

pytestmark = ON_SQLITE
MODULES = {"layers.0.proj": (24, 30), "layers.1.proj": (36, 20)}
SCALING, EXAMPLES, HOSTILE = 2.0, (3, 10, 5, 8, 4), 4
OPTIONS: dict[str, dict[str, Any]] = {  # the cells that are a strategy with options
    "leak": {"strategy": "flexlora-residual", "strategy_options": {"leak": 0.2}},
    "leak-shrink": {"strategy": "flexlora-residual", "strategy_options": {"leak": 0.1, "shrink": 0.3}},
    "by-norm": {"strategy": "hetlora", "strategy_options": {"weighting": "norm"}},
}
PLAIN = ("fedavg", "fedsvd", "ffa", "flexlora", "flexlora-residual", "flora", "hetlora", "raflora", "rolora")
FILTERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "clip": [{"kind": "norm-clip", "bound": 3.0}],
    "krum": [{"kind": "multi-krum", "byzantine_share": 0.2}],
    "median": [{"kind": "geometric-median"}],
    "cosine": [{"kind": "cosine", "minimum": 0.0}],
}
ACCURACY = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
REFUSED = {("hetlora", "clip"), ("hetlora", "median"), ("by-norm", "clip"), ("by-norm", "median"), ("rolora", "cosine")}
ALL = [
    (name, robust, dtype)
    for name in (*PLAIN, *OPTIONS)
    for robust in FILTERS
    for dtype in ACCURACY
    if (name, robust) not in REFUSED
]
QUICK = {
    ("raflora", "cosine", "float32"),
    ("fedsvd", "clip", "bfloat16"),
    ("rolora", "median", "float16"),
    ("leak-shrink", "clip", "float32"),
    ("by-norm", "krum", "float32"),
}
CELLS = [cell if cell in QUICK else pytest.param(*cell, marks=pytest.mark.slow) for cell in ALL]
Factors = dict[str, tuple[Matrix, Matrix]]  # of each module A (r, k) and scaling * B (d, r)


@dataclass(frozen=True)
class Cell:
    """One run: what it is defined with, and its global updates, oldest first, as they are served at the largest rank."""

    coordinator: Served
    rule: str
    ranks: tuple[int, ...]
    leak: float
    shrink: float
    by_norm: bool
    robust: str
    dtype: str
    published: list[Factors] = field(default_factory=list)
    expected: dict[str, Matrix] = field(default_factory=dict)  # D by the oracle alone

    @property
    def apart(self) -> bool:
        return strategy(self.rule).averages_factors


def factors_of(tensors: dict[str, torch.Tensor]) -> Factors:
    keys = {module: f"base_model.model.{module}.lora_{{}}.weight" for module in MODULES}
    return {
        module: (
            oracle.to_numpy(tensors[key.format("A")]),
            SCALING * oracle.to_numpy(tensors[key.format("B")]),
        )
        for module, key in keys.items()
    }


def moved(served: dict[str, torch.Tensor], trainable: str, number: int, index: int) -> dict[str, torch.Tensor]:
    """The slice after training: all go one way, each a little astray, and one far the other way."""
    common, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(100 * number + index)
    made, by = {}, -3.0 if index == HOSTILE else 1.0
    for key, tensor in sorted(served.items()):
        shape = tensor.shape
        wide = torch.randn(40, 40, generator=common)[: shape[0], : shape[1]]  # the same for every rank
        step = (wide + 0.5 * torch.randn(shape, generator=own)) * (
            0.1 * by if f"lora_{trainable}" in key or "lora_B" in key else 0.05
        )
        if trainable in {"A", "B"} and f"lora_{trainable}" not in key:
            made[key] = tensor
        elif trainable == "fresh":
            made[key] = (step * (4.0 if "lora_A" in key else 1.0)).to(tensor.dtype)
        else:
            made[key] = (tensor.float() + step).to(tensor.dtype)
    return made


def padded(matrix: Matrix, rank: int, axis: int) -> Matrix:
    widths = [(0, rank - matrix.shape[axis]) if at == axis else (0, 0) for at in (0, 1)]
    return np.pad(matrix, widths)


def difference(cell: Cell, after: Factors, before: Factors | None) -> Matrix:
    """A change as one long vector: of the factors where the rule looks at them, else of the products."""
    parts, rank = [], max(cell.ranks)
    for module, (A, B) in after.items():
        A0, B0 = (np.zeros_like(A), np.zeros_like(B)) if before is None else before[module]
        if cell.apart:
            parts += [padded(A - A0, rank, 0).ravel(), padded(B - B0, rank, 1).ravel()]
        else:
            parts.append((B @ A - B0 @ A0).ravel())
    return np.concatenate(parts)


def filtered(cell: Cell, weights: Matrix, D: Matrix) -> tuple[Matrix, Matrix]:
    """The weights after the filter, and the share of each change that it left."""
    shares, count = np.ones(len(weights)), len(weights)
    match cell.robust:
        case "clip":
            shares = np.minimum(1.0, 3.0 / np.linalg.norm(D, axis=1))
        case "krum":
            distances = ((D[:, None] - D[None]) ** 2).sum(axis=2)
            scores = np.sort(distances, axis=1)[:, 1 : 1 + count - 1 - 2].sum(axis=1)
            weights = np.where(scores == scores.max(), 0.0, weights)
        case "median":
            v = weights @ D
            for _ in range(2000):
                near = weights / np.maximum(np.linalg.norm(D - v, axis=1), 1e-9)
                v = near @ D / near.sum()
            weights = near
        case "cosine" if len(cell.published) > 1:
            G = difference(cell, cell.published[-1], cell.published[-2])
            weights = np.where(D @ G >= 0, weights, 0.0)
    return weights / weights.sum(), shares


def mixed(
    module: str, sent: list[Factors], served: list[Factors], p: Matrix, c: Matrix, fresh: bool
) -> Iterator[Upload]:
    """A change shortened to c is c of the upload and 1 - c of what was served."""
    for upload, start, weight, share in zip(sent, served, p, c, strict=True):
        (A, B), (A0, B0) = upload[module], start[module]
        was = np.zeros((len(B), A.shape[1])) if fresh else B0 @ A0
        if weight * share > 0:
            yield Upload(A, B, 1.0, weight * share, was)
        if weight * (1 - share) > 0:
            yield Upload(A0, 0 * B0 if fresh else B0, 1.0, weight * (1 - share), was)


def averaged_apart(cell: Cell, uploads: list[Upload]) -> Matrix:
    shares = np.array([one.weight for one in uploads])
    if cell.rule == "hetlora":
        norms = np.array([np.linalg.norm(one.product) for one in uploads])
        shares = norms if cell.by_norm else shares * norms
        shares = shares / shares.sum()
    rank = max(cell.ranks)
    A = np.sum([q * padded(one.A, rank, 0) for q, one in zip(shares, uploads, strict=True)], axis=0)
    B = np.sum([q * padded(one.B, rank, 1) for q, one in zip(shares, uploads, strict=True)], axis=0)
    product: Matrix = B @ A
    return product


def wanted(cell: Cell, module: str, uploads: list[Upload], changes: list[Matrix], p: Matrix) -> Matrix:
    """What is served at the largest rank."""
    rank, old = max(cell.ranks), cell.expected.get(module, np.zeros(MODULES[module]))
    match cell.rule:
        case "flexlora" | "fedsvd":
            return oracle.truncated(oracle.averaged(uploads), rank)
        case "raflora":
            return oracle.truncated(oracle.banded(uploads), rank)
        case "flora":
            return oracle.truncated(old + oracle.averaged(uploads), rank)
        case "flexlora-residual":
            W = oracle.leaky(old, uploads, cell.leak)
            U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
            mean = np.sum([weight * D for weight, D in zip(p, changes, strict=True)], axis=0)
            spread = sum(weight * np.sum(D**2) for weight, D in zip(p, changes, strict=True)) - np.sum(mean**2)
            absent = np.array([sum(one.weight for one in uploads if len(one.A) <= j) for j in range(rank)])
            sigma = np.maximum(0.0, sigma[:rank] - cell.shrink * (spread / rank) ** 0.5 * absent)
            shrunk: Matrix = (U[:, :rank] * sigma) @ Vt[:rank]
            return shrunk
        case _:
            return averaged_apart(cell, uploads)


def one_round(cell: Cell, members: list[Participant], number: int) -> dict[str, Matrix]:
    """Everybody trains and sends; what the oracle makes of it."""
    sent, served = [], []
    for index, member in enumerate(members):
        task = member.task("run")
        assert task["trainable"] == strategy(cell.rule).trained_in(number)
        start = load(member.download(task))
        made = moved(start, task["trainable"], number, index)
        alpha = SCALING * task["rank"]
        member.upload(task, save(made), alpha=alpha, examples=EXAMPLES[index])
        sent.append(factors_of(made))
        served.append(factors_of(start))
    assert cell.coordinator.work() == 1
    fresh = strategy(cell.rule).agents_train == "fresh"
    pairs = list(zip(sent, served, strict=True))
    D = np.stack([difference(cell, upload, None if fresh else start) for upload, start in pairs])
    p, c = filtered(cell, np.array(EXAMPLES) / sum(EXAMPLES), D)
    result = {}
    for module in MODULES:
        uploads = list(mixed(module, sent, served, p, c, fresh))
        changes = [
            share * (u[module][1] @ u[module][0] - s[module][1] @ s[module][0])
            for (u, s), share in zip(pairs, c, strict=True)
        ]
        result[module] = wanted(cell, module, uploads, changes, p)
    return result


def published(cell: Cell, number: int) -> Factors:
    path = f"/v1/runs/run/rounds/{number}/adapter?rank={max(cell.ranks)}"
    return factors_of(load(cell.coordinator.operator.call("GET", path).content))


@pytest.mark.parametrize(("name", "robust", "dtype"), CELLS)
def test_two_rounds_are_the_oracles(coordinator: Served, name: str, robust: str, dtype: str) -> None:
    given = OPTIONS.get(name, {"strategy": name})
    options = given.get("strategy_options", {})
    ranks = (4, 4, 4, 4, 4) if strategy(given["strategy"]).one_rank else (2, 4, 4, 8, 8)
    cell = Cell(
        coordinator,
        given["strategy"],
        ranks,
        options.get("leak", 0.0),
        options.get("shrink", 0.0),
        options.get("weighting") == "norm",
        robust,
        dtype,
    )
    coordinator.run(
        **given,
        modules=[{"name": module, "out_features": d, "in_features": k} for module, (d, k) in MODULES.items()],
        ranks=sorted(set(ranks)),
        scaling={"alpha_per_rank": SCALING},
        robust=FILTERS[robust],
        upload_dtype=dtype,
        norm_bound=50.0,  # so that raflora may serve float16
        min_clients=5,
        min_updates=5,
    )
    members = [coordinator.enroll() for _ in ranks]
    for member, rank, examples in zip(members, ranks, EXAMPLES, strict=True):
        member.declare("run", rank, examples)
    cell.published.append(published(cell, 0))
    for number in (1, 2):
        expected = one_round(cell, members, number)
        cell = replace(cell, expected=expected)
        cell.published.append(published(cell, number))
        for module, (A, B) in cell.published[-1].items():
            assert oracle.relative_error(B @ A, expected[module]) < ACCURACY[dtype]
            if cell.apart and cell.rule != "raflora":
                continue
            A, B = A[:2], B[:, :2]  # what rank 2 is served
            if 2 in ranks:
                assert oracle.relative_error(B @ A, oracle.truncated(expected[module], 2)) < ACCURACY[dtype]
    if robust != "none":
        found = coordinator.round("run", 2)["participants"]
        assert [one["update"] for one in found if one["update"]["notes"]], "the filter has done something"
