"""The portable form: what it does to the numbers, and where it says that it cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flexlora_client.errors import BadInput
from flexlora_client.export import forms
from flexlora_client.export.portable import make_portable
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_client.training.models.slice_files import read_slice
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec, Scaling
from flexlora_shared.ranks import module_ranks
from tests.client.export.conftest import CASES, Case, make_served
from tests.support.kit import spec, tensors

Q, DOWN, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.0.mlp.up_proj"


def test_small_modules_are_padded_and_lora_b_carries_the_scale(models: dict[bool, Path], tmp_path: Path) -> None:
    served = make_served(CASES["patterns"], models[False], tmp_path / "adapter")
    before = load_file(served.folder / ADAPTER_FILE)
    made = make_portable(served.folder, served.spec)
    after = load_file(served.folder / ADAPTER_FILE)
    assert (made.rank, made.rounding) == (8, 0.0), "alpha over rank is a power of two"
    assert set(after) == set(before)
    for name, rank, scale in ((Q, 8, 1.0), (UP, 4, 2.0), (DOWN, 2, 4.0)):
        A, B = after[key_A(name)], after[key_B(name)]
        assert (len(A), B.shape[1]) == (8, 8)
        assert torch.equal(A[:rank], before[key_A(name)])
        assert torch.equal(B[:, :rank], scale * before[key_B(name)])
        assert not A[rank:].any()
        assert not B[:, rank:].any()


def test_a_module_smaller_than_the_rank_is_padded_beyond_its_size(tmp_path: Path) -> None:
    modules = [
        {"name": "up_proj", "out_features": 20, "in_features": 24},
        {"name": "tiny", "out_features": 3, "in_features": 24},
    ]
    run = RunSpec.model_validate(spec(modules=modules), strict=False)
    ranks = module_ranks(run.modules, 8, {})
    assert ranks == {"up_proj": 8, "tiny": 3}
    save_file(tensors(run, 8), tmp_path / ADAPTER_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(adapter_config(run, 8, {})))
    before = read_slice(tmp_path, run)
    make_portable(tmp_path, run)
    after = read_slice(tmp_path, run)  # as `generate` and `chat` do
    assert (after.config.r, after.config.rank_of("tiny"), after.config.scaling_of("tiny")) == (8, 8, 1.0)
    update = [
        s.config.scaling_of("tiny") * s.tensors[key_B("tiny")] @ s.tensors[key_A("tiny")] for s in (before, after)
    ]
    torch.testing.assert_close(*update)


def test_rounding_is_told(models: dict[bool, Path], tmp_path: Path) -> None:
    scaling = Scaling(alpha=2.8)  # 0.7 at rank 4
    rounded = {}
    for dtype in ("float32", "float16"):
        served = make_served(Case(scaling, dtype=dtype), models[False], tmp_path / dtype)
        before = load_file(served.folder / ADAPTER_FILE)
        rounded[dtype] = make_portable(served.folder, served.spec).rounding
        after = load_file(served.folder / ADAPTER_FILE)
        assert torch.equal(after[key_B(Q)], (before[key_B(Q)].double() * 0.7).to(getattr(torch, dtype)))
    assert 1e-9 < rounded["float32"] < 6e-8
    assert 1e-5 < rounded["float16"] < 5e-4


def test_what_float16_cannot_hold_in_full_is_noted(models: dict[bool, Path], tmp_path: Path) -> None:
    """Also where the scale is a power of two: such small numbers have few digits."""
    served = make_served(Case(Scaling(alpha=1 / 16), dtype="float16"), models[False], tmp_path / "adapter")
    assert forms.portable(shutil.copytree(served.folder, tmp_path / "usual"), served.spec).notes == ()
    small = load_file(served.folder / ADAPTER_FILE)
    small[key_B(UP)] *= 0.001
    save_file(small, served.folder / ADAPTER_FILE)
    [note] = forms.portable(served.folder, served.spec).notes
    assert "lora_B with the scale in it is too small for float16" in note


def test_what_does_not_fit_is_refused(models: dict[bool, Path], tmp_path: Path) -> None:
    served = make_served(Case(Scaling(alpha=400.0), dtype="float16"), models[False], tmp_path / "adapter")
    large = load_file(served.folder / ADAPTER_FILE)
    large[key_B(UP)][3, 1] = 1000.0
    save_file(large, served.folder / ADAPTER_FILE)
    with pytest.raises(BadInput, match=f"lora_B of {UP} times its scale 100 does not fit into float16; --exact"):
        make_portable(served.folder, served.spec)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, spec: RunSpec) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(forms, "make_portable", full)
    with pytest.raises(BadInput, match=r"No space left on device .*; free space"):
        forms.portable(tmp_path, RunSpec.model_validate(spec(), strict=False))
