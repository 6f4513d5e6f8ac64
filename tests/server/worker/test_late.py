"""Updates that come late: their weight, what their change is measured against, and that each counts exactly once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter, served_dtype
from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.aggregation.factors import slice_factors
from flexlora_server.worker import aggregate_module
from flexlora_server.worker.aggregate_round import RoundWork, write_initial
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.uploads import UploadCreate
from tests.server.aggregation import oracle
from tests.support.kit import encode
from tests.support.late import (
    MEASURED,
    STALENESS,
    STRATEGIES,
    Late,
    accepted,
    aggregated,
    dense,
    head_change,
    late_round,
    run_of,
    sent,
    uploads_of,
    wanted,
    weights_by_hand,
)


def test_weights_are_discounted_by_the_root_of_the_rounds() -> None:
    late = late_weights([(10, 0), (20, 3), (10, 1)])
    assert late == pytest.approx([10 / (20 + 10 / 2**0.5), 10 / (20 + 10 / 2**0.5), 10 / (20 * 2**0.5 + 10)])
    assert math.fsum(late) == pytest.approx(1.0, abs=1e-15)
    on_time = late_weights([(n, 0) for n in (7, 11, 13)])
    assert on_time == [7 / 31, 11 / 31, 13 / 31]  # to the last bit what they were before anybody could be late


def late_weights(told: Sequence[tuple[int, int]]) -> list[float]:
    made = [
        InputUpdate(
            Path("upload"), UploadCreate(rank=2, alpha=4.0, examples=n, size=1, sha256="0" * 64), "one", staleness
        )
        for n, staleness in told
    ]
    return [one.weight for one in with_weights(made)]


@pytest.mark.parametrize("scaling", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_the_oracles(tmp_path: Path, strategy: str, dtype: str, scaling: int) -> None:
    """Mixed ranks, both rules of scaling, rounding where it is served; late ones of two ages."""
    late = late_round(run_of(strategy, dtype, scaling), tmp_path)
    modules, _ = aggregated(late.work, tmp_path / "result")
    for module in modules:
        W = wanted(late, module.name)
        accuracy = 1e-5 if dtype == "float32" or strategy == "flora" else 2**-7
        got = dense(tmp_path / "result", module.name)
        assert oracle.relative_error(got, oracle.truncated(W, 8)) < accuracy
        if strategy in {
            "flexlora",
            "flexlora-residual",
            "flora",
            "raflora",
            "fedsvd",
        }:  # these report of W before it is rounded
            assert module.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-9)
            assert module.singular_values[:20] == pytest.approx(tuple(oracle.singular_values(W)[:20]), abs=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_so_is_the_head(tmp_path: Path, strategy: str, dtype: str) -> None:
    late = late_round(run_of(strategy, dtype), tmp_path)
    aggregated(late.work, tmp_path / "result")
    want = np.zeros((3, 5))
    now = oracle.rounded(oracle.to_numpy(TorchGlobalAdapter(late.published[-1]).extra("head.weight")), dtype)
    for seed, (given, weight) in enumerate(zip(late.inputs, weights_by_hand(), strict=True)):
        head = oracle.to_numpy(
            sent(late.run, late.base(given), given.announced.rank, seed, 0.3)[key_extra("head.weight")]
        )
        if strategy in MEASURED and given.base is not None:
            head += now - oracle.rounded(oracle.to_numpy(TorchGlobalAdapter(given.base).extra("head.weight")), dtype)
        want += weight * head
    assert np.allclose(oracle.to_numpy(TorchGlobalAdapter(tmp_path / "result").extra("head.weight")), want, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("strategy", ["flexlora", "flexlora-residual", "hetlora"])
def test_changes_are_measured_against_what_each_was_served(
    tmp_path: Path, strategy: str, dtype: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths of whole updates, the head among them, with and without exact inner products."""
    late = late_round(run_of(strategy, dtype), tmp_path)
    if not exact:
        monkeypatch.setattr(aggregate_module, "MAX_WHOLE_COLUMNS", 0)
    _, updates = aggregated(late.work, tmp_path / "result")
    for seed, (given, became) in enumerate(zip(late.inputs, updates.updates, strict=True)):
        base = TorchGlobalAdapter(late.base(given))
        squared = head_change(late, seed, base)
        for module in late.run.modules:
            one = uploads_of(late, module.name)[seed]
            if strategy == "hetlora":
                A0, B0 = slice_factors(
                    base.factors(module.name), given.announced.rank, one.scaling, served_dtype(late.run)
                )
                squared += float(np.linalg.norm(one.scaling * (one.B - oracle.to_numpy(B0)))) ** 2
                squared += float(np.linalg.norm(one.A - oracle.to_numpy(A0))) ** 2
            else:
                assert one.served is not None
                squared += float(np.linalg.norm(one.product - one.served)) ** 2
        assert became.change_norm == pytest.approx(squared**0.5, rel=1e-4)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nobody_learned_and_nothing_changes(
    tmp_path: Path, dtype: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late ones sent back what they had been served rounds ago: the next global update is this one, to the last byte."""
    late = late_round(run_of("flexlora-residual", dtype, extra=[]), tmp_path, step=0.0)
    if not exact:
        monkeypatch.setattr(aggregate_module, "MAX_WHOLE_COLUMNS", 0)
    _, updates = aggregated(late.work, tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == late.published[-1].read_bytes()
    assert max(one.change_norm for one in updates.updates) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_late_one_that_learned_nothing_moves_nothing(tmp_path: Path, dtype: str) -> None:
    """Others learned: the result is theirs at their weights."""
    late = late_round(run_of("flexlora-residual", dtype), tmp_path)
    idle = accepted(late.run, tmp_path, late.published[0], 4, 1, 0.0, 2)
    given = replace(idle, client_id="client-1", staleness=2, weight=late.inputs[1].weight)
    quiet = Late(late.run, late.published, (late.inputs[0], given, *late.inputs[2:]))
    modules, _ = aggregated(quiet.work, tmp_path / "result")
    for module in modules:
        uploads = [one for seed, one in enumerate(uploads_of(quiet, module.name)) if seed != 1]
        W = oracle.residual(dense(late.published[-1], module.name), uploads)
        assert module.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-9)


@pytest.mark.parametrize("strategy", ["flexlora", "flexlora-residual"])
def test_a_clipped_late_one_keeps_part_of_its_own_change(tmp_path: Path, strategy: str) -> None:
    """Clipped to c: what it was served in its own round, and c times what it changed in that; so with the head."""
    late = late_round(run_of(strategy, robust=[{"kind": "norm-clip", "median_factor": 0.5}]), tmp_path)
    modules, updates = aggregated(late.work, tmp_path / "result")
    assert all(one.notes for seed, one in enumerate(updates.updates) if STALENESS[seed])
    counted = [(one.weight, weight) for one, weight in zip(updates.updates, weights_by_hand(), strict=True)]
    measured = strategy in MEASURED
    for module in modules:
        W = (
            dense(late.published[-1], module.name)
            if measured
            else np.zeros_like(dense(late.published[-1], module.name))
        )
        for one, (upload, whole) in zip(uploads_of(late, module.name), counted, strict=True):
            assert one.served is not None
            W += upload * (one.product - one.served) + (0.0 if measured else whole * one.served)
        assert module.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=1e-9)
    now = oracle.to_numpy(TorchGlobalAdapter(late.published[-1]).extra("head.weight"))
    want = now if measured else np.zeros_like(now)
    for seed, (given, (upload, whole)) in enumerate(zip(late.inputs, counted, strict=True)):
        head = oracle.to_numpy(
            sent(late.run, late.base(given), given.announced.rank, seed, 0.3)[key_extra("head.weight")]
        )
        served = oracle.to_numpy(TorchGlobalAdapter(late.base(given)).extra("head.weight"))
        want = want + upload * (head - served) + (0.0 if measured else whole * served)
    assert np.allclose(oracle.to_numpy(TorchGlobalAdapter(tmp_path / "result").extra("head.weight")), want, atol=1e-6)


def test_each_counts_once_with_its_discounted_weight(tmp_path: Path) -> None:
    """Upload i is e_i e_i^T: a 2 would be a double count, a 0 a lost one."""
    modules = [{"name": "layers.0.proj", "out_features": 5, "in_features": 5}]
    run = run_of("flexlora", modules=modules, extra=[], ranks=[1, 5])
    previous, made = tmp_path / "previous", []
    with previous.open("w+b") as file:
        write_initial(run, file)
    for i, stale in enumerate(STALENESS):
        A, path = torch.eye(5)[i : i + 1], tmp_path / f"one-{i}"
        path.write_bytes(encode({key_A("layers.0.proj"): A, key_B("layers.0.proj"): A.mT / 2}))
        told = UploadCreate(rank=1, alpha=2.0, examples=10 + i, size=path.stat().st_size, sha256="0" * 64)
        made.append(InputUpdate(path, told, f"client-{i}", stale, previous if stale else None))
    aggregated(RoundWork(run, with_weights(made), previous), tmp_path / "result")
    assert np.allclose(dense(tmp_path / "result", "layers.0.proj"), np.diag(weights_by_hand()), atol=1e-7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_late_inputs_make_the_same_bytes(tmp_path: Path, strategy: str) -> None:
    late = late_round(run_of(strategy), tmp_path)
    for threads in (1, 3):
        work = RoundWork(late.run, late.inputs, late.published[-1], late.published[-2], threads=threads)
        aggregated(work, tmp_path / f"result-{threads}")
    assert (tmp_path / "result-1").read_bytes() == (tmp_path / "result-3").read_bytes()


@pytest.mark.parametrize(
    "strategy", [name for name in STRATEGIES if name != "fedsvd"]
)  # whose uploads show by their A what they were served
def test_served_from_the_previous_one_after_all(tmp_path: Path, strategy: str) -> None:
    """A base that is the previous update, named or not, makes no difference: a round that was tried again."""
    late = late_round(run_of(strategy), tmp_path)
    previous = late.published[-1]
    named = [replace(update, staleness=1, base=previous) for update in late.inputs]
    silent = [replace(update, staleness=1, base=None) for update in late.inputs]
    aggregated(RoundWork(late.run, named, previous), tmp_path / "named")
    aggregated(RoundWork(late.run, silent, previous), tmp_path / "silent")
    assert (tmp_path / "named").read_bytes() == (tmp_path / "silent").read_bytes()
