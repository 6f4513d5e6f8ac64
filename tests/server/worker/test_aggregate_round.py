"""A round's aggregation from files to a file: its bytes, its filters, its figures, whatever the number of threads."""

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter
from flexlora_server.adapter_files.round_uploads import InputUpdate, RoundUploads, with_weights
from flexlora_server.aggregation.geometry.projection import projected_geometry
from flexlora_server.aggregation.svd import cost
from flexlora_server.errors import AggregationError
from flexlora_server.worker import aggregate_module
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate, write_initial
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import AggregationMetrics, ModuleMetrics
from flexlora_shared.messages.uploads import UploadCreate
from tests.server.aggregation import oracle
from tests.support.kit import encode, spec, tensors

Figures = tuple[tuple[ModuleMetrics, ...], AggregationMetrics]
SHAPES = [(40, 48), (96, 48), (48, 96), (48, 48), (17, 33)]
MODULES = [{"name": f"layers.{i}.proj", "out_features": d, "in_features": k} for i, (d, k) in enumerate(SHAPES)]
HEAD = {"name": "head.weight", "shape": [3, 5]}
RANKS = (2, 4, 8, 8)


def run_of(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(spec(modules=MODULES, extra=[HEAD], **changes))


def initial(run: RunSpec, folder: Path) -> Path:
    path = folder / "previous"
    with path.open("w+b") as file:
        write_initial(run, file)
    return path


def upload(
    run: RunSpec, folder: Path, rank: int, seed: int, factor: float = 1.0, dtype: torch.dtype = torch.float32
) -> Path:
    """Random tensors; lora_B and the head times `factor`."""
    path, made = folder / f"upload-{seed}-{factor}", tensors(run, rank, seed=seed)
    path.write_bytes(encode({key: t if "lora_A" in key else factor * t for key, t in made.items()}, dtype))
    return path


def told(path: Path, rank: int, examples: int = 10) -> UploadCreate:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    return UploadCreate(rank=rank, alpha=2.0 * rank, examples=examples, size=size, sha256=digest)


def inputs(
    run: RunSpec, folder: Path, ranks: Sequence[int] = RANKS, factors: Sequence[float] = ()
) -> list[InputUpdate]:
    made = []
    for seed, rank in enumerate(ranks):
        path = upload(run, folder, rank, seed, factors[seed] if factors else 1.0)
        made.append(InputUpdate(path, told(path, rank, 10 + seed), f"client-{seed}"))
    return with_weights(made)


def aggregated(work: RoundWork, target: Path) -> Figures:
    with target.open("w+b") as file:
        return write_aggregate(work, file, lambda: None)


def products(run: RunSpec, path: Path) -> dict[str, oracle.Matrix]:
    stored = TorchGlobalAdapter(path)
    found = {module.name: stored.factors(module.name) for module in run.modules}
    return {name: oracle.to_numpy(one.B) @ oracle.to_numpy(one.A) for name, one in found.items()}


def average(run: RunSpec, given: Sequence[InputUpdate], module: str) -> oracle.Matrix:
    made = []
    for seed, one in enumerate(given):
        named = tensors(run, one.announced.rank, seed=seed)
        A, B = oracle.to_numpy(named[key_A(module)]), oracle.to_numpy(named[key_B(module)])
        made.append(oracle.Upload(A, B, 2.0, one.weight))
    return oracle.averaged(made)


@pytest.mark.parametrize("strategy", ["flexlora", "flexlora-residual", "hetlora", "flora"])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path, strategy: str) -> None:
    run = run_of(strategy=strategy, robust=[{"kind": "norm-clip", "median_factor": 1.0}])
    previous, given = initial(run, tmp_path), inputs(run, tmp_path)
    digests, figures = set(), set()
    for threads in range(1, 9):
        target = tmp_path / f"result-{threads}"
        modules, updates = aggregated(RoundWork(run, given, previous, threads=threads), target)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
        figures.add(repr(([m.model_copy(update={"seconds": 0.0}) for m in modules], updates)))
    assert len(digests) == 1
    assert len(figures) == 1


@pytest.mark.parametrize("route", ["gram", "subspace", pytest.param("eigh", marks=pytest.mark.slow)])
def test_so_it_is_on_the_routes_of_larger_modules(tmp_path: Path, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread's first product, too: what is compared are float64 figures, to the last bit."""
    monkeypatch.setattr(cost, "choose_routes", lambda *shape, exact: (route,))
    ranks = (16,) * 10
    run = RunSpec.model_validate(spec(modules=_large(5), ranks=[max(ranks)], error_bound=1.3))
    previous, given = initial(run, tmp_path), inputs(run, tmp_path, ranks)
    digests, figures = set(), set()
    for threads in (1, 4):
        target = tmp_path / f"result-{threads}"
        modules, _ = aggregated(RoundWork(run, given, previous, threads=threads), target)
        assert {module.route for module in modules} == {route}
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
        figures.add(repr([(m.singular_values, m.total_energy, m.energy_kept, m.pairwise_cosine) for m in modules]))
    assert len(digests) == 1
    assert len(figures) == 1


@pytest.mark.slow
def test_so_it_is_in_a_process_that_was_told_of_one_thread_by_the_program_alone(tmp_path: Path) -> None:
    """As a worker is: without OMP_NUM_THREADS, the first product in a new thread is summed otherwise than all later ones."""
    run = RunSpec.model_validate(spec(modules=_large(5), ranks=[16]))
    (tmp_path / "run.json").write_text(run.model_dump_json())
    initial(run, tmp_path)
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "import sys; from pathlib import Path; from tests.server.worker.test_aggregate_round import *\n"
        "folder = Path(sys.argv[1]); run = RunSpec.model_validate_json((folder / 'run.json').read_text())\n"
        "given = inputs(run, folder, (16,) * 10)\n"
        "for threads in (1, 4):\n"
        "    modules, _ = aggregated(RoundWork(run, given, folder / 'previous', threads=threads), folder / 'result')\n"
        "    print([(m.route, m.singular_values, m.total_energy) for m in modules])\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    environment["PYTHONPATH"] = ":".join(sys.path)
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert len(set(lines)) == 1
    assert "'gram'" in lines[0]


def _large(count: int) -> list[dict[str, Any]]:
    return [{"name": f"layers.{i}.proj", "out_features": 1024, "in_features": 1024} for i in range(count)]


def test_the_order_of_participants_changes_no_more_than_rounding(tmp_path: Path) -> None:
    run = run_of()
    previous, given = initial(run, tmp_path), inputs(run, tmp_path)
    aggregated(RoundWork(run, given, previous), tmp_path / "one")
    aggregated(RoundWork(run, given[::-1], previous), tmp_path / "other")
    one, other = products(run, tmp_path / "one"), products(run, tmp_path / "other")
    assert max(oracle.relative_error(one[name], other[name]) for name in one) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_thousand_participants(tmp_path: Path, dtype: torch.dtype) -> None:
    run = run_of(ranks=[1, 2, 8])
    made = [upload(run, tmp_path, rank, rank, dtype=dtype) for rank in (1, 2, 8)]
    given = with_weights(
        [InputUpdate(made[i % 3], told(made[i % 3], (1, 2, 8)[i % 3]), f"{i:04}") for i in range(1000)]
    )
    _, updates = aggregated(RoundWork(run, given, initial(run, tmp_path), threads=2), tmp_path / "result")
    found = products(run, tmp_path / "result")
    for module in run.modules:
        W = np.zeros((module.out_features, module.in_features))
        for rank, count in ((1, 334), (2, 333), (8, 333)):
            named = {key: t.to(dtype) for key, t in tensors(run, rank, seed=rank).items()}
            B, A = oracle.to_numpy(named[key_B(module.name)]), oracle.to_numpy(named[key_A(module.name)])
            W += 2.0 * count / 1000 * B @ A
        assert oracle.relative_error(found[module.name], oracle.truncated(W, 8)) < 1e-5
    assert len(updates.updates) == 1000
    assert updates.cosines == ()


def test_a_boosted_update_is_dropped_or_clipped_and_everybody_is_told(tmp_path: Path) -> None:
    ranks, factors = (8, 8, 8, 8, 8, 8), (1.0, 1.0, 1.0, 1.0, 1.0, 100.0)
    plain = run_of()
    honest = with_weights([InputUpdate(g.path, g.announced, g.client_id) for g in inputs(plain, tmp_path, ranks[:5])])
    previous = initial(plain, tmp_path)
    aggregated(RoundWork(plain, honest, previous), tmp_path / "honest")
    krum = run_of(robust=[{"kind": "multi-krum", "byzantine_share": 0.2}])
    given = inputs(krum, tmp_path, ranks, factors)
    _, updates = aggregated(RoundWork(krum, given, previous), tmp_path / "krum")
    assert updates.updates[-1].weight == 0
    assert "dropped by multi-krum" in updates.updates[-1].notes[0]
    clip = run_of(robust=[{"kind": "norm-clip", "median_factor": 1.0}])
    _, updates = aggregated(RoundWork(clip, given, previous), tmp_path / "clip")
    assert updates.updates[-1].notes[0].startswith("clipped to 0.01")
    assert updates.updates[-1].weight == pytest.approx(given[-1].weight / 100, rel=0.2)
    best = products(plain, tmp_path / "honest")
    aggregated(RoundWork(plain, given, previous), tmp_path / "boosted")
    errors = {
        name: max(oracle.relative_error(found[m], best[m]) for m in best)
        for name in ("krum", "clip", "boosted")
        for found in [products(plain, tmp_path / name)]
    }
    assert errors["krum"] < errors["boosted"] / 20
    assert errors["clip"] < errors["boosted"] / 10


def test_when_filters_leave_nobody_the_global_update_stays(tmp_path: Path) -> None:
    """Every participant moves against the last change: all are dropped, and not a byte moves, the head included."""
    run = run_of(robust=[{"kind": "cosine", "minimum": 1.0}], ranks=[8])
    first, given = initial(run, tmp_path), inputs(run, tmp_path, (8, 8, 8))
    plain = run_of(ranks=[8])
    aggregated(RoundWork(plain, given, first), tmp_path / "second")
    _, updates = aggregated(RoundWork(run, given, tmp_path / "second", first), tmp_path / "third")
    assert (tmp_path / "third").read_bytes() == (tmp_path / "second").read_bytes()
    assert all(one.weight == 0 and one.notes for one in updates.updates)


@pytest.mark.parametrize(
    "kind", [{"kind": "multi-krum", "byzantine_share": 0.15}, {"kind": "norm-clip", "median_factor": 1.0}]
)
def test_strategies_that_average_factors_are_judged_by_factors(tmp_path: Path, kind: dict[str, Any]) -> None:
    """A product of huge B and tiny A is no longer than the others'."""
    run = run_of(strategy="fedavg", ranks=[8], robust=[kind])
    previous, given = initial(run, tmp_path), inputs(run, tmp_path, (8,) * 6)
    path = tmp_path / "disguised"
    made = tensors(run, 8, seed=0)
    path.write_bytes(
        encode({key: t / 1e4 if "lora_A" in key else 1e4 * t if "lora_B" in key else t for key, t in made.items()})
    )
    given[0] = InputUpdate(path, told(path, 8), "client-0", weight=given[0].weight)
    _, updates = aggregated(RoundWork(run, given, previous), tmp_path / "result")
    assert updates.updates[0].notes
    assert updates.updates[0].weight < 1e-3


def test_the_running_bound_uses_past_rounds(tmp_path: Path) -> None:
    run = run_of(robust=[{"kind": "norm-clip", "median_factor": 1.0, "history": 5}])
    previous, given = initial(run, tmp_path), inputs(run, tmp_path)
    past = (1e-3,) * 5  # five quiet rounds outvote this round's four updates
    _, updates = aggregated(RoundWork(run, given, previous, past_norms=past), tmp_path / "result")
    assert all("bound 0.001" in one.notes[0] for one in updates.updates)


def test_a_clipped_head_is_clipped_with_its_update(tmp_path: Path) -> None:
    """A boosted classification head alone makes an update long, and is averaged with the same shares."""
    run = run_of(robust=[{"kind": "norm-clip", "bound": 1.0}])
    previous, given = initial(run, tmp_path), inputs(run, tmp_path, (4,))
    aggregated(RoundWork(run, given, previous), tmp_path / "result")
    before = TorchGlobalAdapter(previous).extra("head.weight")
    sent = tensors(run, 4, seed=0)[key_extra("head.weight")]
    whole = sum(float(np.linalg.norm(average(run, given, module.name))) ** 2 for module in run.modules) + float(
        (sent - before).double().square().sum()
    )
    moved = TorchGlobalAdapter(tmp_path / "result").extra("head.weight") - before
    assert torch.allclose(moved, (sent - before) / whole**0.5, atol=1e-6)


def test_figures_are_the_oracles(tmp_path: Path) -> None:
    run = run_of()
    previous, given = initial(run, tmp_path), inputs(run, tmp_path)
    modules, updates = aggregated(RoundWork(run, given, previous), tmp_path / "result")
    changes = []
    for seed, one in enumerate(given):
        named = tensors(run, one.announced.rank, seed=seed)
        changes.append(
            [2.0 * (oracle.to_numpy(named[key_B(m.name)]) @ oracle.to_numpy(named[key_A(m.name)])) for m in run.modules]
        )
    for index, module in enumerate(modules):
        own = np.array([change[index].ravel() for change in changes])
        pairs = _cosines(own)[np.triu_indices(len(own), 1)]
        assert module.pairwise_cosine is not None
        assert module.pairwise_cosine.least == pytest.approx(pairs.min(), abs=1e-6)
        assert module.pairwise_cosine.most == pytest.approx(pairs.max(), abs=1e-6)
        W = average(run, given, module.name)
        assert module.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-9)
        assert module.singular_values == pytest.approx(tuple(oracle.singular_values(W)[: len(module.singular_values)]))
        assert module.certificate == 1.0
        assert module.route
        ranks = sum(one.announced.rank for one in given)
        assert module.bytes_read == 4 * ranks * sum(SHAPES[index])
    before = TorchGlobalAdapter(previous).extra("head.weight")
    for seed, (one, change) in enumerate(zip(given, changes, strict=True)):
        change.append(oracle.to_numpy(tensors(run, one.announced.rank, seed=seed)[key_extra("head.weight")] - before))
    whole = np.array([np.concatenate([m.ravel() for m in change]) for change in changes])
    cosines = _cosines(whole)
    assert np.allclose(np.array(updates.cosines, dtype=float), cosines, atol=1e-6)
    for index, became in enumerate(updates.updates):
        assert became.client_id == f"client-{index}"
        assert became.weight == given[index].weight
        assert became.change_norm == pytest.approx(float(np.linalg.norm(whole[index])), rel=1e-6)
        assert became.cosine == pytest.approx(np.delete(cosines[index], index).mean(), abs=1e-6)
        assert became.notes == ()
    assert updates.change_norm == pytest.approx(sorted(np.linalg.norm(whole, axis=1))[1], rel=1e-6)


def _cosines(rows: oracle.Matrix) -> oracle.Matrix:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def test_with_many_participants_cosines_are_of_the_leading_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the result holds all that anybody changed, these are the whole changes."""
    run = run_of(ranks=[2, 16])
    previous, given = initial(run, tmp_path), inputs(run, tmp_path, (2, 2, 2, 2))
    exact, _ = aggregated(RoundWork(run, given, previous), tmp_path / "exact")
    monkeypatch.setattr(aggregate_module, "MAX_WHOLE_COLUMNS", 7)
    projected, _ = aggregated(RoundWork(run, given, previous), tmp_path / "projected")
    for one, other in zip(exact, projected, strict=True):
        assert one.pairwise_cosine is not None
        assert other.pairwise_cosine is not None
        assert other.pairwise_cosine.median == pytest.approx(one.pairwise_cosine.median, abs=1e-4)


def test_a_projection_sees_what_moves_the_result(tmp_path: Path) -> None:
    run = run_of(ranks=[8])
    previous, given = initial(run, tmp_path), inputs(run, tmp_path, (8, 8))
    aggregated(RoundWork(run, given, previous), tmp_path / "result")
    uploads = RoundUploads(run, given)
    name = run.modules[0].name
    before, after = TorchGlobalAdapter(previous).factors(name), TorchGlobalAdapter(tmp_path / "result").factors(name)
    found, _ = projected_geometry(uploads.updates(name), before, after, torch.float32, fresh=False)
    U, V = np.linalg.qr(oracle.to_numpy(after.B))[0], np.linalg.qr(oracle.to_numpy(after.A).T)[0]
    rows = np.array(
        [(U.T @ (2.0 * oracle.to_numpy(u.B) @ oracle.to_numpy(u.A)) @ V).ravel() for u in uploads.updates(name)]
    )
    assert np.allclose(oracle.to_numpy(found.inner), rows @ rows.T, rtol=1e-4)


def test_a_lost_lease_stops_the_work(tmp_path: Path) -> None:
    run = run_of()
    previous, given = initial(run, tmp_path), inputs(run, tmp_path)
    calls = []

    def check_alive() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise AggregationError("the lease is lost")

    with pytest.raises(AggregationError, match="the lease is lost"):
        write_aggregate(RoundWork(run, given, previous, threads=2), io.BytesIO(), check_alive)
    assert len(calls) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_gpu_gives_what_the_processor_does(tmp_path: Path) -> None:
    run = run_of()
    previous, given = initial(run, tmp_path), inputs(run, tmp_path)
    aggregated(RoundWork(run, given, previous), tmp_path / "cpu")
    aggregated(RoundWork(run, given, previous, device="cuda"), tmp_path / "cuda")
    one, other = products(run, tmp_path / "cpu"), products(run, tmp_path / "cuda")
    assert max(oracle.relative_error(one[name], other[name]) for name in one) < 1e-5
