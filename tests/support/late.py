"""Rounds with updates that come late, and what must come out of them in dense float64 matrices."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter, served_dtype
from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.adapter_files.slicing import served_scaling
from flexlora_server.aggregation.factors import slice_factors
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate, write_initial
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import AggregationMetrics, ModuleMetrics
from flexlora_shared.messages.uploads import UploadCreate
from tests.server.aggregation import oracle
from tests.support.kit import encode, spec, tensors

HEAD = {"name": "head.weight", "shape": [3, 5]}
MODULES = [{"name": f"layers.{i}.proj", "out_features": d, "in_features": 33} for i, d in enumerate((40, 21))]
SCALINGS: tuple[dict[str, Any], ...] = ({"alpha_per_rank": 2.0}, {"alpha": 16.0, "use_rslora": True})
STALENESS = (0, 2, 0, 1, 1)  # of the round's participants; they were served from the adapter of two, one rounds before
STRATEGIES = ("flexlora", "flexlora-residual", "hetlora", "flora", "fedavg", "ffa", "raflora", "fedsvd")
MEASURED = ("flexlora-residual",)


@dataclass(frozen=True)
class Late:
    """A run, its global updates (oldest first, the last one is the previous) and a round with late inputs."""

    run: RunSpec
    published: tuple[Path, ...]
    inputs: tuple[InputUpdate, ...]

    @property
    def work(self) -> RoundWork:
        return RoundWork(self.run, self.inputs, self.published[-1], self.published[-2])

    def base(self, given: InputUpdate) -> Path:
        return given.base or self.published[-1]


def run_of(strategy: str, dtype: str = "float32", scaling: int = 0, **changes: Any) -> RunSpec:
    ranks = [8] if strategy in {"fedavg", "ffa"} else [2, 4, 8]
    given = {"modules": MODULES, "extra": [HEAD], "ranks": ranks, "scaling": SCALINGS[scaling], **changes}
    return RunSpec.model_validate(spec(strategy=strategy, upload_dtype=dtype, **given))


def sent(run: RunSpec, served: Path, rank: int, seed: int, step: float) -> dict[str, Tensor]:
    """What somebody served from `served` trained: its slice, moved by `step` times noise."""
    adapter, dtype, noise = TorchGlobalAdapter(served), served_dtype(run), tensors(run, rank, seed=seed)
    made = {}
    for module in run.modules:
        A, B = slice_factors(adapter.factors(module.name), rank, served_scaling(run, rank), dtype)
        frozen = run.strategy in {"ffa", "fedsvd"}
        made[key_A(module.name)] = A if frozen else A + (step * noise[key_A(module.name)]).to(dtype)
        made[key_B(module.name)] = B + (step * noise[key_B(module.name)]).to(dtype)
    for extra in run.extra:
        made[key_extra(extra.name)] = (adapter.extra(extra.name) + step * noise[key_extra(extra.name)]).to(dtype)
    return made


def accepted(
    run: RunSpec, folder: Path, served: Path, rank: int, seed: int, step: float, staleness: int = 0
) -> InputUpdate:
    path = folder / f"upload-{served.name}-{seed}-{step}"
    path.write_bytes(encode(sent(run, served, rank, seed, step), served_dtype(run)))
    data = path.read_bytes()
    told = UploadCreate(
        rank=rank,
        alpha=run.scaling.alpha_of(rank),
        use_rslora=run.scaling.use_rslora,
        examples=10 + seed,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return InputUpdate(path, told, f"client-{seed}", staleness, served if staleness else None)


def late_round(run: RunSpec, folder: Path, step: float = 0.3) -> Late:
    """Two rounds with everybody on time, and the inputs of a third."""
    published = [folder / "published-0"]
    with published[0].open("w+b") as file:
        write_initial(run, file)
    for number in (1, 2):
        inputs = with_weights([accepted(run, folder, published[-1], r, r + number, 0.3) for r in run.ranks])
        published.append(folder / f"published-{number}")
        aggregated(RoundWork(run, inputs, published[-2]), published[-1])
    given = [
        accepted(run, folder, published[2 - stale], run.ranks[seed % len(run.ranks)], seed, step, stale)
        for seed, stale in enumerate(STALENESS)
    ]
    return Late(run, tuple(published), tuple(with_weights(given)))


def aggregated(work: RoundWork, target: Path) -> tuple[tuple[ModuleMetrics, ...], AggregationMetrics]:
    with target.open("w+b") as file:
        return write_aggregate(work, file, lambda: None)


def weights_by_hand() -> list[float]:
    counted = [(10 + seed) / (1 + stale) ** 0.5 for seed, stale in enumerate(STALENESS)]
    return [one / sum(counted) for one in counted]


def dense(path: Path, module: str) -> oracle.Matrix:
    factors = TorchGlobalAdapter(path).factors(module)
    return oracle.to_numpy(factors.B) @ oracle.to_numpy(factors.A)


def uploads_of(late: Late, module: str) -> list[oracle.Upload]:
    """Everybody's factors and the product that each was really served, from its own base."""
    found = []
    for seed, (given, weight) in enumerate(zip(late.inputs, weights_by_hand(), strict=True)):
        step = float(given.path.name.rsplit("-", 1)[1])
        named = sent(late.run, late.base(given), given.announced.rank, seed, step)
        s = served_scaling(late.run, given.announced.rank)
        served = served_by_hand(late.base(given), module, given.announced.rank, s, late.run.upload_dtype)
        A, B = oracle.to_numpy(named[key_A(module)]), oracle.to_numpy(named[key_B(module)])
        found.append(oracle.Upload(A, B, s, weight, served))
    return found


def head_change(late: Late, seed: int, base: TorchGlobalAdapter) -> float:
    """The squared length of what somebody changed in the head."""
    given = late.inputs[seed]
    head = oracle.to_numpy(sent(late.run, late.base(given), given.announced.rank, seed, 0.3)[key_extra("head.weight")])
    served = oracle.rounded(oracle.to_numpy(base.extra("head.weight")), late.run.upload_dtype)
    return float(np.linalg.norm(head - served)) ** 2


def served_by_hand(path: Path, module: str, rank: int, scaling: float, dtype: str) -> oracle.Matrix:
    base = TorchGlobalAdapter(path).factors(module)
    B = oracle.rounded(oracle.to_numpy(base.B)[:, :rank] / scaling, dtype)
    served: oracle.Matrix = scaling * (B @ oracle.to_numpy(base.A)[:rank])
    return served


def wanted(late: Late, module: str) -> oracle.Matrix:
    """The strategy's W before truncation."""
    uploads, previous = uploads_of(late, module), dense(late.published[-1], module)
    match late.run.strategy:
        case "flexlora" | "fedsvd":
            return oracle.averaged(uploads)
        case "flexlora-residual":
            return oracle.residual(previous, uploads)
        case "raflora":
            return oracle.banded(uploads)
        case "flora":
            return previous + oracle.averaged(uploads)
        case "hetlora":
            return _of_factors(uploads, [one.weight * float(np.linalg.norm(one.product)) for one in uploads])
        case _:
            return _of_factors(uploads, [one.weight for one in uploads])


def _of_factors(uploads: Sequence[oracle.Upload], shares: Sequence[float]) -> oracle.Matrix:
    """Factors padded with zeros and averaged apart from each other."""
    rank, total = max(len(one.A) for one in uploads), sum(shares)
    B = sum(
        q / total * one.scaling * np.pad(one.B, ((0, 0), (0, rank - len(one.A))))
        for q, one in zip(shares, uploads, strict=True)
    )
    A = sum(q / total * np.pad(one.A, ((0, rank - len(one.A)), (0, 0))) for q, one in zip(shares, uploads, strict=True))
    product: oracle.Matrix = np.asarray(B) @ np.asarray(A)
    return product
