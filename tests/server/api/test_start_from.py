"""Runs that start from what another run published, through HTTP."""

import hashlib
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.worker.garbage_collector import collect_garbage
from flexlora_server.worker.replay import replay
from flexlora_shared.messages.records import RoundRecord
from flexlora_shared.messages.runs import RunSpec
from tests.support.databases import ON_SQLITE
from tests.support.kit import Served, encode, spec, tensors

HEAD = [{"name": "head.weight", "shape": [3, 5]}]


def finished(coordinator: Served, **changes: Any) -> RunSpec:
    """A run of one round with one update, published."""
    changes = {"extra": HEAD, "rounds": 1, **changes}
    participant, task, data = coordinator.working(max(changes.get("ranks", [8])), **changes)
    participant.upload(task, data)
    coordinator.work()
    return coordinator.spec("run")


def started(coordinator: Served, **changes: Any) -> RunSpec:
    """Run `next`, which starts from run `run`; whatever nothing refers to is deleted before its start."""
    changes = {"start_from": {"run": "run"}, "extra": HEAD, **changes}
    coordinator.operator.expect(201, "POST", "/v1/runs", json=spec("next", **changes))
    collect_garbage(coordinator.store, coordinator.blobs, min_blob_age=-1)
    coordinator.operator.expect(200, "POST", "/v1/runs/next/start")
    coordinator.work()
    return coordinator.spec("next")


def published(coordinator: Served, run: str, number: int) -> tuple[str, TorchGlobalAdapter]:
    record = coordinator.operator.expect(200, "GET", f"/v1/runs/{run}/rounds/{number}/record")
    return record["published"], TorchGlobalAdapter(coordinator.blobs.path(record["published"]))


def product(factors: GlobalFactors, rank: int | None = None) -> torch.Tensor:
    return factors.B[:, :rank].double() @ factors.A[:rank].double()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("ranks", [[2, 4, 8], [2, 16], [2, 4]])
def test_round_0_is_the_global_update_of_the_other_run(coordinator: Served, ranks: list[int]) -> None:
    run = finished(coordinator)
    sha256, source = published(coordinator, "run", 1)
    next_run = started(coordinator, ranks=ranks)
    assert next_run.start_from is not None
    assert next_run.start_from.model_dump() == {"run": "run", "round": 1, "sha256": sha256}
    begun, adapter = published(coordinator, "next", 0)
    for module in run.modules:
        before, after = source.factors(module.name), adapter.factors(module.name)
        assert after.A.shape[0] == max(ranks)
        assert after.A.any(dim=1).all(), "every direction trains"
        for rank in ranks:
            assert apart(product(after, rank), product(before, rank)) < 1e-5
    assert torch.equal(adapter.extra("head.weight"), source.extra("head.weight"))
    record = coordinator.operator.expect(200, "GET", "/v1/runs/next/rounds/0/record")
    blobs = coordinator.settings.data_dir
    assert replay(RoundRecord.model_validate_json(json.dumps(record)), blobs).faults == ()
    assert begun == record["published"]


@ON_SQLITE
def test_the_run_goes_on_from_there(coordinator: Served) -> None:
    """Who sends back what it was served changes nothing but by rounding."""
    run = finished(coordinator, extra=[])
    started(coordinator, ranks=[2, 8], extra=[])
    participant = coordinator.enroll("another")
    participant.declare("next", 8)
    task = participant.task("next")
    participant.upload(task, participant.download(task))
    coordinator.work()
    for module in run.modules:
        before = published(coordinator, "run", 1)[1].factors(module.name)
        assert apart(product(published(coordinator, "next", 1)[1].factors(module.name)), product(before)) < 1e-5


@ON_SQLITE
def test_a_rule_that_averages_factors_goes_on_with_the_same_factors(coordinator: Served) -> None:
    finished(coordinator, strategy="fedavg", ranks=[4])
    started(coordinator, strategy="fedavg", ranks=[4])
    assert published(coordinator, "next", 0)[0] == published(coordinator, "run", 1)[0]


@ON_SQLITE
def test_slices_are_the_best_of_their_ranks_whatever_made_the_adapter(coordinator: Served) -> None:
    """Averaged factors are in no order; their first directions are not their best ones."""
    run = finished(coordinator, strategy="fedavg", ranks=[8])
    started(coordinator, ranks=[2, 8])
    for module in run.modules:
        W = product(published(coordinator, "run", 1)[1].factors(module.name))
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        best = U[:, :2] * S[:2] @ Vh[:2]
        assert apart(product(published(coordinator, "next", 0)[1].factors(module.name), 2), best) < 1e-5


@ON_SQLITE
def test_a_run_may_start_from_random_factors_of_another(coordinator: Served) -> None:
    """Round 0 of a run is zero: the next one begins with zero, and trains."""
    run = finished(coordinator)
    started(coordinator, start_from={"run": "run", "round": 0}, ranks=[2, 8])
    for module in run.modules:
        factors = published(coordinator, "next", 0)[1].factors(module.name)
        assert not factors.B.any()
        assert factors.A.any(dim=1).all()


@ON_SQLITE
def test_an_agent_of_the_new_run_gets_slices_like_any_other(coordinator: Served) -> None:
    run = finished(coordinator)
    started(coordinator, ranks=[2, 4, 8])
    participant = coordinator.enroll("another")
    participant.declare("next", 2)
    task = participant.task("next")
    slice_ = load(participant.download(task))
    assert {name: tensor.shape for name, tensor in slice_.items()} == {
        name: tensor.shape for name, tensor in tensors(run, 2).items()
    }
    assert participant.upload(task, encode(slice_))["counts_in"] == 1


@ON_SQLITE
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"start_from": {"run": "nothing"}}, "run-not-found", "nothing"),
        ({"start_from": {"run": "run", "round": 2}}, "adapter-not-published", "Round 2 of run 'run'"),
        ({"start_from": {"run": "run", "sha256": "0" * 64}}, "invalid-run", "not the start_from.sha256 given"),
        ({"modules": spec()["modules"][:1]}, "invalid-run", "other modules"),
        ({"extra": []}, "invalid-run", "other extra tensors"),
        ({"model": {"id": "another"}}, "invalid-run", "another base model, tiny"),
        ({"model": {"id": "tiny", "task_type": "SEQ_CLS", "labels": ["a"]}}, "invalid-run", "another task type"),
    ],
)
def test_an_adapter_of_something_else_is_refused(
    coordinator: Served, changes: dict[str, Any], code: str, said: str
) -> None:
    finished(coordinator)
    definition = spec("next", **{"start_from": {"run": "run"}, "extra": HEAD, **changes})
    assert said in coordinator.operator.problem(code, "POST", "/v1/runs", json=definition)["detail"]
    assert len(coordinator.operator.expect(200, "GET", "/v1/runs")["runs"]) == 1


@ON_SQLITE
def test_fingerprints_say_whether_the_base_model_is_the_same(coordinator: Served) -> None:
    weights, tokenizer = (hashlib.sha256(word).hexdigest() for word in (b"weights", b"tokenizer"))
    told = {"weights": weights, "tokenizer": tokenizer}
    coordinator.run(extra=HEAD, model={"id": "tiny", "fingerprint": told})
    moved = spec("next", start_from={"run": "run"}, extra=HEAD, model={"id": "/elsewhere", "fingerprint": told})
    coordinator.operator.expect(201, "POST", "/v1/runs", json=moved)
    other = {**moved, "name": "other", "model": {"id": "tiny", "fingerprint": {**told, "weights": tokenizer}}}
    coordinator.operator.problem("invalid-run", "POST", "/v1/runs", json=other)


@ON_SQLITE
def test_a_run_whose_start_was_lost_says_so(coordinator: Served) -> None:
    finished(coordinator)
    sha256 = published(coordinator, "run", 1)[0]
    coordinator.blobs.path(sha256).unlink()
    started(coordinator)
    events = coordinator.operator.expect(200, "GET", "/v1/runs/next/rounds/0")
    assert f"The adapter that the run starts from is missing: restore the blob {sha256}" in events["summary"]["reason"]


@ON_SQLITE
@pytest.mark.parametrize("size", [1.0, 0.0])
def test_an_adapter_beyond_the_norm_bound_is_no_start(coordinator: Served, size: float) -> None:
    """Neither by its modules nor, where those are zero, by a tensor beside LoRA: no upload could keep within it."""
    participant, task, _ = coordinator.working(8, extra=HEAD, rounds=1)
    own = tensors(coordinator.spec("run"), 8)
    participant.upload(task, encode({key: size * value if "lora" in key else value for key, value in own.items()}))
    coordinator.work()
    started(coordinator, norm_bound=0.5)
    assert "norm_bound 0.5" in coordinator.round("next", 0)["summary"]["reason"]
