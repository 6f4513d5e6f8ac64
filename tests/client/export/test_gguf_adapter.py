"""An adapter in GGUF, read back with the package gguf."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, GPT2Config, Qwen2Config, Qwen2ForCausalLM

from flexlora_client.errors import BadInput, ModelError
from flexlora_client.export.forms import with_gguf
from flexlora_client.export.gguf_adapter import ARCHITECTURES, permute
from flexlora_client.training.contract import ADAPTER_FILE
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import Scaling
from tests.client.export.conftest import CASES, Case, make_served
from tests.support.tiny_models import make_tokenizer

gguf = pytest.importorskip("gguf")


def test_it_holds_the_factors_by_llama_cpps_names(models: dict[bool, Path], tmp_path: Path) -> None:
    served = make_served(CASES["patterns"], models[False], tmp_path / "adapter")
    form = with_gguf(served.folder, served.spec, None)
    assert "adapter.gguf is the same for llama.cpp" in form.detail
    reader = gguf.GGUFReader(served.folder / "adapter.gguf")
    told = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert told == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
        "general.name": "test",
        "general.base_model.count": 1,
        "general.base_model.0.name": str(served.base),
    }
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    expected, tensors = {}, load_file(served.folder / ADAPTER_FILE)
    short = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    short |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for module in served.spec.modules:
        _, _, layer, _, own = module.name.split(".")
        B = tensors[key_B(module.name)]
        if own in ("q_proj", "k_proj"):  # 4 and 2 heads of 8 rows: their halves interleaved
            order = [8 * head + row for head in range(len(B) // 8) for row in (0, 4, 1, 5, 2, 6, 3, 7)]
            B = B[order]
        expected[f"blk.{layer}.{short[own]}.weight.lora_a"] = tensors[key_A(module.name)]
        expected[f"blk.{layer}.{short[own]}.weight.lora_b"] = B
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_only_the_llama_family_is_permuted(tmp_path: Path) -> None:
    config = Qwen2Config(vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    config.num_attention_heads = config.num_key_value_heads = 2
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen2")
    make_tokenizer().save_pretrained(tmp_path / "qwen2")
    served = make_served(Case(Scaling(alpha=4.0)), tmp_path / "qwen2", tmp_path / "adapter")
    with_gguf(served.folder, served.spec, None)
    reader = gguf.GGUFReader(served.folder / "adapter.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen2"
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    B = load_file(served.folder / ADAPTER_FILE)[key_B("model.layers.0.self_attn.q_proj")]
    assert torch.equal(found["blk.0.attn_q.weight.lora_b"], B)


def test_an_unknown_architecture_is_refused(models: dict[bool, Path], tmp_path: Path) -> None:
    served = make_served(Case(Scaling(alpha=4.0)), models[False], tmp_path / "adapter")
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(BadInput, match=r"how llama\.cpp keeps the layers of a gpt2 model is not known here"):
        with_gguf(served.folder, served.spec, str(tmp_path / "gpt2"))
    with pytest.raises(ModelError, match="the configuration"):
        with_gguf(served.folder, served.spec, str(tmp_path / "nowhere"))


def test_the_configuration_of_another_model_is_refused(models: dict[bool, Path], tmp_path: Path) -> None:
    """By its heads the rows are reordered: with others' the adapter would load, and compute nonsense."""
    served = make_served(Case(Scaling(alpha=4.0)), models[False], tmp_path / "adapter")
    config = AutoConfig.from_pretrained(served.base)
    config.num_key_value_heads = 4
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match=r"4 heads of 8 where .*k_proj has 16 rows: it is not the run's base model"):
        with_gguf(served.folder, served.spec, str(tmp_path / "other"))


def test_every_architecture_named_is_one_of_gguf_and_transformers() -> None:
    assert set(ARCHITECTURES.values()) <= set(gguf.MODEL_ARCH_NAMES.values())
    for model_type, architecture in ARCHITECTURES.items():
        assert AutoConfig.for_model(model_type).model_type == model_type
        number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
        names = gguf.get_tensor_name_map(number, 1)
        assert names.get_name("model.layers.0.mlp.down_proj") == "blk.0.ffn_down"


def test_permuting_is_that_of_llama_cpps_converter() -> None:
    rows = torch.arange(12.0).reshape(12, 1)
    assert permute(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
