"""The rough need of memory follows how this machine is asked to compute."""

from pathlib import Path

import psutil
import pytest
import torch

from flexlora_client.agent.checks.findings import Doubt
from flexlora_client.agent.checks.machine_checks import disk, memory
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.errors import OutOfMemory
from flexlora_client.training.contract import Compute
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from tests.support.tiny_models import make_llama, make_run

EMBEDDINGS = 2 * 300 * 32
LAYERS = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
NORMS = 5 * 32
BASE = EMBEDDINGS + LAYERS + NORMS  # numbers
TRAINED = 2 * 2 * 4 * (32 + 32)  # of q_proj and o_proj at rank 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("base"))


def subject(base: Path, folder: Path, compute: Compute) -> Subject:
    made = Subject(folder, "run", 4, {}, folder)
    made.spec, made.devices = make_run(base, target=["q_proj", "o_proj"]), [torch.device("cpu")]
    made.local_trainer = LocalTrainer(StandardTrainer(), Models(), (), (), 0, "cpu", str(base), compute=compute)
    return made


@pytest.mark.parametrize(
    ("compute", "needed"),
    [
        (Compute(), 4 * BASE + 16 * TRAINED),
        (Compute(dtype="bfloat16"), 2 * BASE + 16 * TRAINED),
        (Compute(quantization="int8"), 4 * (EMBEDDINGS + NORMS) + LAYERS + 16 * TRAINED),
        (
            Compute(dtype="bfloat16", quantization="nf4", optimizer="adamw-8bit"),
            2 * (EMBEDDINGS + NORMS) + LAYERS // 2 + 10 * TRAINED,
        ),
    ],
)
def test_what_is_needed_by_how_it_is_computed(base: Path, tmp_path: Path, compute: Compute, needed: int) -> None:
    told = memory(subject(base, tmp_path, compute))
    assert isinstance(told, str)
    assert told.startswith(f"at least {needed / 1000:.0f} kB are needed")


def test_what_is_held_beside_what_is_trained_takes_less(base: Path, tmp_path: Path) -> None:
    made = subject(base, tmp_path, Compute())
    made.hold_rank = 8
    told = memory(made)
    assert isinstance(told, str)
    assert told.startswith(f"at least {(4 * BASE + (16 + 4) * TRAINED) / 1000:.0f} kB are needed")
    needs = []
    for made.asked_rank, made.hold_rank in ((4, None), (4, 8), (8, None)):
        needs.append(float(disk(made).split("needs ")[1].split()[0]))
    assert needs[1] == pytest.approx(4 / 6 * (needs[0] + needs[2]), rel=0.05), "4 slices of each"


def test_of_several_devices_the_fullest_counts(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(base, tmp_path, Compute())
    made.devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9 if device.index == 0 else BASE, 10**9))
    told = memory(made)
    assert isinstance(told, Doubt)
    assert "on cuda:1; end what else uses it" in told.detail


def test_a_base_model_too_large_for_float32_may_fit_quantized(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = type("Memory", (), {"available": 29 * BASE // 10, "total": 3 * BASE})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: half)
    with pytest.raises(OutOfMemory, match="load it smaller with --quantization nf4"):
        memory(subject(base, tmp_path, Compute()))
    quantized = memory(subject(base, tmp_path, Compute(quantization="nf4")))
    assert isinstance(quantized, Doubt), "the adapter and its optimizer come on top"
    assert isinstance(memory(subject(base, tmp_path, Compute(dtype="bfloat16", quantization="nf4"))), str)
