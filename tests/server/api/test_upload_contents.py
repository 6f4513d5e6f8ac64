"""Inspection of an update: each bad tensor is named with its reason, the upload ends, its bytes are deleted."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from flexlora_shared.layout import KEY_PREFIX
from tests.support.databases import ON_SQLITE
from tests.support.kit import Participant, Served, tensors

pytestmark = ON_SQLITE  # bytes and files alone

Q_A, Q_B = f"{KEY_PREFIX}layers.0.q_proj.lora_A.weight", f"{KEY_PREFIX}layers.0.q_proj.lora_B.weight"
HEAD = f"{KEY_PREFIX}head.weight"
EXTRA = [{"name": "head.weight", "shape": [3, 24]}]
Named = dict[str, Tensor]


def refused(coordinator: Served, participant: Participant, task: Any, data: bytes, code: str) -> dict[str, Any]:
    """The commit is refused with this code, and nothing of the upload is left."""
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    body = participant.problem(code, "PUT", f"/v1/uploads/{upload}/commit")
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")
    assert list((coordinator.settings.data_dir / "partial").iterdir()) == []
    return body


def fill(key: str, value: float) -> Callable[[Named], Named]:
    def change(named: Named) -> Named:
        named[key].view(-1)[1] = value
        return named

    return change


def as_dtype(key: str, dtype: torch.dtype) -> Callable[[Named], Named]:
    return lambda named: named | {key: named[key].to(dtype)}


def overflow(named: Named) -> Named:
    """Every number is finite in float32, their product is not."""
    return named | {Q_A: torch.full((8, 24), 3e38), Q_B: torch.full((20, 8), 3e38)}


OTHER = f"{KEY_PREFIX}x"
BAD: dict[str, tuple[str, str, Callable[[Named], Named]]] = {
    "other name": (OTHER, "no such tensor", lambda n: {k: v for k, v in n.items() if k != Q_A} | {OTHER: n[Q_A]}),
    "missing": (Q_A, "is missing", lambda n: {k: v for k, v in n.items() if k != Q_A} | {HEAD: torch.zeros(3, 24)}),
    "other shape": (Q_A, "shape", lambda n: n | {Q_A: n[Q_A].reshape(24, 8)}),
    "other rank": (Q_A, "shape", lambda n: n | {Q_A: n[Q_A][:4].clone(), Q_B: n[Q_B][:, :4].contiguous()}),
    "float64": (Q_B, "dtype F64", as_dtype(Q_B, torch.float64)),
    "int32": (Q_B, "dtype I32", as_dtype(Q_B, torch.int32)),
    "NaN": (Q_A, "NaN or infinite", fill(Q_A, float("nan"))),
    "infinity": (Q_B, "NaN or infinite", fill(Q_B, float("inf"))),
    "minus infinity": (Q_B, "NaN or infinite", fill(Q_B, float("-inf"))),
    "NaN in the head": (HEAD, "NaN or infinite", fill(HEAD, float("nan"))),
    "overflow of the product": (Q_B, "exceeds the run's bound", overflow),
    "norm bound": (Q_B, "exceeds the run's bound", lambda n: n | {Q_B: n[Q_B] * 1e7}),
}  # fmt: skip


def test_each_bad_tensor_is_named(coordinator: Served) -> None:
    """One after another in the same round: a refusal leaves the participant free to send a good one."""
    participant, task, _ = coordinator.working(extra=EXTRA)
    for tensor, reason, change in BAD.values():
        good = tensors(coordinator.spec("run"), 8)
        body = refused(coordinator, participant, task, save(change(good)), "invalid-tensor")
        assert body["context"]["tensor"] == tensor
        assert reason in body["detail"]
        assert repr(tensor) in body["detail"]
    participant.upload(task, save(tensors(coordinator.spec("run"), 8)))
    assert coordinator.work() == 1
    assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
    coordinator.check_storage()


def test_header_attacks(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    first = next(name for name in header if name != "__metadata__")

    def packed(raw: str) -> bytes:
        encoded = raw.encode("utf-8", "surrogatepass")
        return len(encoded).to_bytes(8, "little") + encoded + body

    text = json.dumps(header)
    attacks = [
        (99_000_000).to_bytes(8, "little") + data[8:],
        packed(" " + text),
        packed(text.replace("[0, ", "[-0, ")),
        packed(text.replace("[0, ", "[" + "9" * 4500 + ", ")),
        packed(json.dumps({"__metadata__": {"a": "\ud800"}} | header)),
        packed("[" * 4000),
        packed(text[:-1] + f', "{first}": {json.dumps(header[first])}}}'),
        packed(
            json.dumps(header | {"hole": {"dtype": "U8", "shape": [0], "data_offsets": [len(body), len(body) + 9]}})
        ),
        data + b"\0",
    ]
    for attack in attacks:
        refused(coordinator, participant, task, attack, "invalid-header")
    names = ["\0", "../../../etc/passwd", "\u2028", "x" * 300]
    for name in names:
        renamed = {name if key == first else key: value for key, value in header.items()}
        body_ = refused(coordinator, participant, task, packed(json.dumps(renamed)), "invalid-tensor")
        assert body_["context"]["tensor"] == name
    participant.upload(task, data)
    coordinator.check_storage()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_may_be_mixed_in_one_file(coordinator: Served, dtype: torch.dtype) -> None:
    participant, task, _ = coordinator.working(norm_bound=1e3)
    named = tensors(coordinator.spec("run"), 8)
    participant.upload(task, save(named | {Q_A: named[Q_A].to(dtype)}))
    assert coordinator.work() == 1


def test_the_norm_bound_is_exact(coordinator: Served) -> None:
    """Orthogonal factors: the product's norm is known, and lies below what the factors' norms alone would bound."""
    participant, task, _ = coordinator.working(norm_bound=16.0)
    named = tensors(coordinator.spec("run"), 8) | {Q_A: torch.eye(8, 24), Q_B: torch.eye(20, 8)}
    named = {key: tensor if key in (Q_A, Q_B) else tensor * 1e-3 for key, tensor in named.items()}
    scaled = named | {Q_B: named[Q_B] * 2.83}  # scaling 2 * 2.83 * sqrt(8) = 16.01
    body = refused(coordinator, participant, task, save(scaled), "invalid-tensor")
    assert body["context"]["tensor"] == Q_B
    participant.upload(task, save(named | {Q_B: named[Q_B] * 2.82}))  # 15.95


def cancelling(named: Named, size: float) -> Named:
    """Huge rank-one terms `b a - b a` in front of what was there: they change the product by nothing."""
    A, B = named[Q_A].clone(), named[Q_B].clone()
    A[:2], B[:, 0], B[:, 1] = size, size, -size
    return named | {Q_A: A, Q_B: B}


def test_a_negligible_participant_cannot_erase_the_update_of_the_others(coordinator: Served) -> None:
    """The noise floor of the decomposition lies above everybody's singular values where huge terms cancel."""
    run = coordinator.run(min_clients=2)
    honest, attacker = coordinator.enroll("honest"), coordinator.enroll("attacker")
    for participant, examples in ((honest, 1_000_000), (attacker, 1)):
        participant.declare("run", 8, examples=examples)
    task, other = honest.task("run"), attacker.task("run")
    honest.upload(task, save(tensors(run, 8)), examples=1_000_000)
    nothing = tensors(run, 8) | {Q_A: torch.zeros(8, 24), Q_B: torch.zeros(20, 8)}
    attack = cancelling(nothing, 2.0**40)  # a power of two: the Gram matrices cancel exactly too
    body = refused(coordinator, attacker, other, save(attack), "invalid-tensor")
    assert body["context"]["tensor"] == Q_B
    assert "cancel" in body["detail"]
    attacker.upload(other, save(cancelling(tensors(run, 8), 100.0)), examples=1)  # ill-conditioned, but harmless
    assert coordinator.work() == 1
    values = coordinator.round("run", 1)["modules"][0]["singular_values"]
    named = tensors(run, 8)
    expected = torch.linalg.svdvals(2.0 * named[Q_B].double() @ named[Q_A].double())[:8]
    assert values[:8] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize(("large", "small"), [(Q_A, Q_B), (Q_B, Q_A)])
def test_factors_that_are_averaged_are_bounded_each(coordinator: Served, large: str, small: str) -> None:
    """Their product is tiny; averaged apart, the large one meets the other factors of everybody else."""
    participant, task, data = coordinator.working(strategy="fedavg", ranks=[8])
    named = tensors(coordinator.spec("run"), 8)
    unbalanced = named | {large: named[large] * 1e20, small: named[small] * 1e-30}
    body = refused(coordinator, participant, task, save(unbalanced), "invalid-tensor")
    assert body["context"]["tensor"] == large
    participant.upload(task, data)
    assert coordinator.work() == 1


def test_a_strategy_of_products_takes_unbalanced_factors(coordinator: Served) -> None:
    participant, task, _ = coordinator.working()
    named = tensors(coordinator.spec("run"), 8)
    participant.upload(task, save(named | {Q_A: named[Q_A] * 1e-20, Q_B: named[Q_B] * 1e20}))
    assert coordinator.work() == 1
