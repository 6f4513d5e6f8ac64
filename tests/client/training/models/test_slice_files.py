"""Reading slices that come from somebody else, and writing trained ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexlora_client.errors import AdapterError, DivergedError
from flexlora_client.training.models.slice_files import read_config, read_slice, write_slice
from flexlora_shared.messages.runs import RunSpec
from tests.support.tiny_models import edit_config, make_run, make_slice

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def spec(llama: Path) -> RunSpec:
    return make_run(llama, target=["q_proj", "v_proj"])


@pytest.fixture
def served(llama: Path, tmp_path: Path, spec: RunSpec) -> Path:
    return make_slice(tmp_path / "served", llama, spec, 4)


def test_a_slice_of_peft_is_read_whole(served: Path, spec: RunSpec) -> None:
    part = read_slice(served, spec)
    assert len(part.tensors) == 8
    assert part.tensors[f"{LAYER}.lora_A.weight"].shape == (4, 32)
    assert (part.config.r, part.config.lora_alpha, part.config.use_rslora) == (4, 16, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is not 'LORA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is not 'CAUSAL_LM'"),
        ({"bias": "all"}, "bias is not 'none'"),
        ({"use_dora": True}, "sets use_dora, which no slice of this protocol has"),
        ({"layers_to_transform": [0]}, "sets layers_to_transform"),
        ({"trainable_token_indices": [0]}, "sets trainable_token_indices"),
        ({"r": "4"}, "r: Input should be a valid integer"),
        ({"lora_alpha": float("nan")}, "lora_alpha: Input should be a finite number"),
        ({"target_modules": "all-linear"}, "target_modules: Input should be"),
        ({"target_modules": ["q_proj", "v_proj"]}, "target_modules are not the run's modules"),
        ({"rank_pattern": {"(a+)+b": 4}}, "rank_pattern.*String should match pattern"),
        ({"rank_pattern": {"k_proj": 4}}, "the pattern's key k_proj names no module of the run"),
        ({"alpha_pattern": {"proj": 4}}, "the pattern's key proj names no module"),
    ],
)
def test_configurations_that_no_coordinator_serves(
    served: Path, spec: RunSpec, fields: dict[str, Any], message: str
) -> None:
    edit_config(served, **fields)
    with pytest.raises(AdapterError, match=message):
        read_config(served, spec)


def test_a_configuration_that_leaves_a_head_untrained(bert: Path, tmp_path: Path) -> None:
    spec = make_run(bert, "SEQ_CLS", ["query"])
    served = make_slice(tmp_path / "served", bert, spec)
    edit_config(served, modules_to_save=None)
    with pytest.raises(AdapterError, match=r"does not cover the run's extra tensor classifier\.weight"):
        read_config(served, spec)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "is not a JSON object")]
)
def test_configurations_that_are_not_json(served: Path, spec: RunSpec, content: bytes, message: str) -> None:
    (served / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=message):
        read_config(served, spec)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_are_not_there(served: Path, spec: RunSpec, name: str) -> None:
    (served / name).unlink()
    with pytest.raises(AdapterError, match=f"{name} cannot be read .*; fetch the slice again"):
        read_slice(served, spec)


def test_tensor_files_that_do_not_fit(served: Path, spec: RunSpec) -> None:
    path = served / "adapter_model.safetensors"
    good, tensors = path.read_bytes(), load_file(path)
    key = f"{LAYER}.lora_A.weight"
    wrong = {
        "shape": tensors | {key: torch.zeros(5, 32)},
        "dtype": tensors | {key: torch.zeros(4, 32, dtype=torch.float64)},
        "no such tensor": tensors | {"other": torch.zeros(1)},
        "is missing": {name: tensor for name, tensor in tensors.items() if name != key},
        "not finite": tensors | {key: torch.full((4, 32), float("nan"))},
    }
    for message, changed in wrong.items():
        save_file(changed, path)
        with pytest.raises(AdapterError, match=message):
            read_slice(served, spec)
    for broken in (good[:-1], good[:100], b"", good + b"\0"):
        path.write_bytes(broken)
        with pytest.raises(AdapterError, match="is not the slice of this run"):
            read_slice(served, spec)


def test_a_slice_written_is_the_slice_read(served: Path, spec: RunSpec, tmp_path: Path) -> None:
    part = read_slice(served, spec)
    path = write_slice(part.tensors, served, spec, tmp_path / "deep" / "out")
    assert path.read_bytes() == (served / "adapter_model.safetensors").read_bytes()
    again = read_slice(path.parent, spec)
    assert again.config == part.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in part.tensors.items())


def test_transposed_tensors_are_written_in_order(served: Path, spec: RunSpec, tmp_path: Path) -> None:
    tensors = {name: tensor.T.contiguous().T for name, tensor in read_slice(served, spec).tensors.items()}
    assert not any(tensor.is_contiguous() for tensor in tensors.values())
    path = write_slice(tensors, served, spec, tmp_path / "out")
    assert path.read_bytes() == (served / "adapter_model.safetensors").read_bytes()


def test_nothing_is_written_of_numbers_that_do_not_fit(served: Path, spec: RunSpec, tmp_path: Path) -> None:
    half = spec.model_copy(update={"upload_dtype": "float16"})
    tensors = {name: tensor * 1e9 for name, tensor in read_slice(served, spec).tensors.items()}
    with pytest.raises(DivergedError, match=f"{LAYER}.*not finite in float16; lower the learning rate"):
        write_slice(tensors, served, half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_keeps_no_parts(served: Path, spec: RunSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "adapter_model.safetensors").mkdir(parents=True)
    with pytest.raises(AdapterError, match=r"cannot be written .*free space or give another directory"):
        write_slice(read_slice(served, spec).tensors, served, spec, out)
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_ranks_and_scalings_follow_the_patterns(served: Path, spec: RunSpec) -> None:
    edit_config(served, rank_pattern={"layers.1.self_attn.q_proj": 8, "q_proj": 2}, alpha_pattern={"v_proj": 6})
    config = read_config(served, spec)
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]
    assert [config.rank_of(name) for name in names] == [2, 8, 4]
    assert [config.scaling_of(name) for name in names] == [8.0, 2.0, 1.5]
    edit_config(served, use_rslora=True)
    assert read_config(served, spec).scaling_of(names[2]) == 3.0


def test_whole_numbers_of_alpha_are_accepted_as_json_writes_them(served: Path, spec: RunSpec) -> None:
    text = (served / "adapter_config.json").read_text()
    assert json.loads(text)["lora_alpha"] == 16
    assert isinstance(read_config(served, spec).lora_alpha, float)
