"""What `describe` finds, from configurations alone, against the real models and PEFT's own choice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DeepseekV3Config,
    DeiTConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    ModernBertConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    RobertaConfig,
    SiglipConfig,
    T5GemmaConfig,
    ViTConfig,
)

from flexlora_client.errors import ModelError
from flexlora_client.training.models.describe_model import Description, describe, skeleton
from flexlora_shared.messages.runs import RunSpec, TaskType
from tests.support.tiny_models import make_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
TOKENS: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL: dict[str, Any] = TOKENS | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED: dict[str, Any] = SMALL | {"num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=4, **TOKENS),
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL),
    "modernbert": ModernBertConfig(cls_token_id=0, sep_token_id=1, **SMALL),
}


def written(name: str, directory: Path) -> str:
    CONFIGS[name].save_pretrained(directory)  # config.json and nothing else: no weights
    return str(directory)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, "CAUSAL_LM") for name in ("llama", "mistral", "qwen2", "gpt2")),
        *((name, "SEQ_CLS") for name in ("llama", "gpt2", "bert", "roberta", "modernbert")),
    ],
)
def test_modules_are_those_peft_gives_adapters_of_the_same_shapes(tmp_path: Path, name: str, task: TaskType) -> None:
    labels = ("a", "b", "c") if task == "SEQ_CLS" else ()
    described = describe(written(name, tmp_path), task, labels=labels)
    auto: Any = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    config = CONFIGS[name].__class__.from_pretrained(tmp_path)
    config.num_labels = 3
    heads = {tensor.name.rpartition(".")[0] for tensor in described.extra}
    options = LoraConfig(task_type=task, r=2, target_modules="all-linear", modules_to_save=sorted(heads) or None)
    layers = get_peft_model(auto.from_config(config), options).get_base_model().named_modules()
    adapters: dict[str, tuple[object, object]] = {
        name: (layer.lora_B["default"].out_features, layer.lora_A["default"].in_features)
        for name, layer in layers
        if isinstance(layer, LoraLayer)
    }
    assert {m.name: (m.out_features, m.in_features) for m in described.modules} == adapters
    assert len(adapters) >= 8


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("llama", {"score.weight": ((3, 16), "normal")}),
        ("gpt2", {"score.weight": ((3, 16), "normal")}),
        ("bert", {"classifier.weight": ((3, 16), "normal"), "classifier.bias": ((3,), "zeros")}),
        (
            "roberta",
            {
                "classifier.dense.weight": ((16, 16), "normal"),
                "classifier.dense.bias": ((16,), "zeros"),
                "classifier.out_proj.weight": ((3, 16), "normal"),
                "classifier.out_proj.bias": ((3,), "zeros"),
            },
        ),
        (
            "modernbert",
            {
                "head.dense.weight": ((16, 16), "normal"),
                "head.norm.weight": ((16,), "ones"),
                "classifier.weight": ((3, 16), "normal"),
                "classifier.bias": ((3,), "zeros"),
            },
        ),
    ],
)
def test_a_classifiers_head_goes_to_the_extra_tensors(tmp_path: Path, name: str, extra: dict[str, Any]) -> None:
    described = describe(written(name, tmp_path), "SEQ_CLS", labels=["a", "b", "c"])
    assert {tensor.name: (tensor.shape, tensor.init) for tensor in described.extra} == extra


def test_gpt2s_transposed_layers_have_their_inputs_and_outputs_right(tmp_path: Path) -> None:
    modules = describe(written("gpt2", tmp_path), target=["attn.c_attn", "mlp.c_proj"]).modules
    assert [(m.name, m.out_features, m.in_features) for m in modules[:2]] == [
        ("transformer.h.0.attn.c_attn", 48, 16),
        ("transformer.h.0.mlp.c_proj", 16, 64),
    ]
    assert len(modules) == 4


def test_targets_are_endings_or_whole_names(tmp_path: Path) -> None:
    model = written("llama", tmp_path)
    assert [module.name for module in describe(model, target="layers.1.self_attn.q_proj").modules] == [
        "model.layers.1.self_attn.q_proj"
    ]
    assert len(describe(model, target=["q_proj", "model.layers.0.mlp.up_proj"]).modules) == 3


@pytest.mark.parametrize("target", [["proj"], ["lm_head"], ["embed_tokens"], ["q_proj", "query"], [], ""])
def test_targets_that_are_no_linear_layers(tmp_path: Path, target: Any) -> None:
    with pytest.raises(ModelError, match="names no linear layer; this model has down_proj, gate_proj, k_proj"):
        describe(written("llama", tmp_path), target=target)


def test_the_skeleton_is_the_model_part_of_a_run(tmp_path: Path) -> None:
    described = describe(written("bert", tmp_path), "SEQ_CLS", ["query"], ["a", "b"], revision="v1")
    part = json.loads(json.dumps(skeleton(described)))
    spec = RunSpec.model_validate_json(json.dumps(part | {"name": "test", "ranks": [2], "rounds": 1}))
    assert (spec.model, spec.modules, spec.extra) == (described.model, described.modules, described.extra)
    assert part["model"] == {"id": str(tmp_path), "revision": "v1", "task_type": "SEQ_CLS", "labels": ["a", "b"]}


def test_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    """Seventy billion parameters, of which any real allocation would fail."""
    sizes: dict[str, Any] = {"hidden_size": 8192, "intermediate_size": 286_720, "num_hidden_layers": 10}
    LlamaConfig(**TOKENS, **sizes, num_attention_heads=64, num_key_value_heads=8).save_pretrained(tmp_path)
    modules = describe(str(tmp_path)).modules
    assert len(modules) == 70
    assert sum(m.out_features * m.in_features for m in modules) > 68e9
    assert torch.get_default_device() == torch.device("cpu")


def test_models_that_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no usable configuration .*local directory with its config\.json"):
        describe(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no usable configuration"):
        describe(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no usable configuration"):
        describe(str(tmp_path))
    with pytest.raises(ModelError, match="needs its labels"):
        describe(written("bert", tmp_path), "SEQ_CLS")


EXPERTS: dict[str, Any] = GROUPED | {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS: dict[str, PretrainedConfig] = {
    "deepseek": DeepseekV3Config(
        **EXPERTS | {"num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
    ),
    "qwen2-moe": Qwen2MoeConfig(**EXPERTS, num_experts=4, shared_expert_intermediate_size=8),
    "mamba": MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1),
    "gemma3": Gemma3Config(text_config=GROUPED, vision_config=VISION | {"image_size": 32, "patch_size": 8}),
}


def described(name: str, directory: Path, **options: Any) -> Description:
    OTHERS[name].save_pretrained(directory)
    return describe(str(directory), **options)


def endings(found: Description) -> set[str]:
    return {module.name.rpartition(".")[2] for module in found.modules}


def test_layers_that_peft_rewrites_are_left_out_with_its_reason(tmp_path: Path) -> None:
    found = described("deepseek", tmp_path)
    assert endings(found) == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    note = next(note for note in found.notes if "PEFT cannot adapt them" in note)
    assert note.startswith("left out 6 layers (model.layers.*.mlp.down_proj, ")
    assert "gate_proj without also targeting up_proj" in note
    with pytest.raises(ModelError, match=r"PEFT cannot adapt 2 layers .*; name others with --target"):
        described("deepseek", tmp_path, target=["up_proj", "o_proj"])


def test_fused_experts_are_left_out_with_a_word(tmp_path: Path) -> None:
    note = described("deepseek", tmp_path).notes[0]
    assert note == (
        "left out 2 tensors (model.layers.*.mlp.experts.down_proj, model.layers.*.mlp.experts.gate_up_proj): "
        "one tensor holds all experts, which no adapter of one A and one B fits."
    )


def test_layers_too_small_for_the_smallest_rank_are_left_out(tmp_path: Path) -> None:
    assert "shared_expert_gate" in endings(described("qwen2-moe", tmp_path))
    found = described("qwen2-moe", tmp_path, smallest_rank=2)
    assert "shared_expert_gate" not in endings(found)
    assert "left out 2 layers (model.layers.*.mlp.shared_expert_gate): they are smaller than rank 2." in found.notes


def test_excluded_layers(tmp_path: Path) -> None:
    found = described("qwen2-moe", tmp_path, exclude=["shared_expert_gate", "layers.0.self_attn.q_proj"])
    names = [module.name for module in found.modules]
    assert "model.layers.1.self_attn.q_proj" in names
    assert not {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.shared_expert_gate"}.intersection(names)
    with pytest.raises(ModelError, match="the exclusion gate names no linear layer"):
        described("qwen2-moe", tmp_path, exclude=["gate"])
    with pytest.raises(ModelError, match="no linear layer is left"):
        described("qwen2-moe", tmp_path, target="q_proj", exclude=["q_proj"])


def test_a_mamba_mixers_weights_that_its_kernel_reads(tmp_path: Path) -> None:
    found = described("mamba", tmp_path)
    assert endings(found) == {"in_proj", "x_proj"}
    assert "dt_proj, backbone.layers.*.mixer.out_proj): the mixer's kernel reads" in found.notes[0]


def test_a_vision_tower_that_text_does_not_pass_through(tmp_path: Path) -> None:
    found = described("gemma3", tmp_path)
    assert {module.name.split(".")[1] for module in found.modules} == {"language_model"}
    assert "vision_tower" in found.notes[0]
    assert found.notes[0].endswith("text does not pass through them.")


def test_an_encoder_decoder_is_text_on_both_sides(tmp_path: Path) -> None:
    """Its text configuration is that of the decoder alone."""
    T5GemmaConfig(encoder=GROUPED, decoder=GROUPED, **TOKENS).save_pretrained(tmp_path)
    found = describe(str(tmp_path), "SEQ_2_SEQ_LM")
    assert {module.name.split(".")[1] for module in found.modules} == {"encoder", "decoder"}


def test_what_a_classifiers_checkpoint_lacks_becomes_extra_tensors(tmp_path: Path) -> None:
    """A masked language model has no pooler, which a classifier uses: it starts alike for everybody, and is averaged."""
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path)
    found = describe(str(tmp_path), "SEQ_CLS", labels=["a", "b", "c"])
    assert {tensor.name: tensor.init for tensor in found.extra} == {
        "classifier.weight": "normal",
        "classifier.bias": "zeros",
        "bert.pooler.dense.weight": "normal",
        "bert.pooler.dense.bias": "zeros",
    }
    assert not any("pooler" in module.name for module in found.modules)
    BertForSequenceClassification(BertConfig(**SMALL)).save_pretrained(tmp_path)
    assert len(describe(str(tmp_path), "SEQ_CLS", labels=["a", "b", "c"]).extra) == 2


def test_weights_that_would_be_unpickled_are_none(tmp_path: Path) -> None:
    model = BertForMaskedLM(BertConfig(**SMALL))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    unknown = describe(str(tmp_path), "SEQ_CLS", labels=["a", "b", "c"])
    assert unknown.notes[0].startswith(f"no safetensors of {tmp_path} lie on this machine, so what they lack beside")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="has no usable configuration or weights for SEQ_CLS"):
        describe(str(tmp_path), "SEQ_CLS", labels=["a", "b", "c"])


def test_weights_of_another_model(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path)
    CONFIGS["llama"].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds no weights for .* and more; use a model that has them"):
        describe(str(tmp_path))


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("TOKEN_CLS", CONFIGS["bert"]),
        ("IMAGE_CLASSIFICATION", ViTConfig(**VISION)),
        ("IMAGE_CLASSIFICATION", DeiTConfig(**VISION)),
        ("IMAGE_CLASSIFICATION", SiglipConfig(vision_config=VISION, text_config=VISION)),
    ],
)
def test_other_classifiers_have_heads_too(task: TaskType, config: PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    found = describe(str(tmp_path), task, labels=["a", "b", "c"])
    assert {tensor.name: tensor.shape for tensor in found.extra} == {
        "classifier.weight": (3, 16),
        "classifier.bias": (3,),
    }
    with pytest.raises(ModelError, match="needs its labels"):
        describe(str(tmp_path), task)


def test_the_base_model_and_its_prompts_are_pinned(tmp_path: Path) -> None:
    CONFIGS["llama"].save_pretrained(tmp_path)
    bare = describe(str(tmp_path))
    assert (bare.model.fingerprint, bare.prompt_format) == (None, "as-is")
    assert len(bare.notes) == 2
    assert bare.notes[1].startswith("the run will not check that participants have the same base model: ")
    LlamaForCausalLM(LlamaConfig(**GROUPED | {"vocab_size": 300})).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    plain = describe(str(tmp_path))
    assert (plain.notes, plain.prompt_format) == ((), "as-is")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    chat = describe(str(tmp_path))
    assert chat.prompt_format == "chat-template"
    assert chat.model.fingerprint is not None
    assert chat.model.fingerprint != plain.model.fingerprint


def test_a_hubs_branch_is_resolved_to_the_commit_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--somebody--base"
    LlamaForCausalLM(LlamaConfig(**GROUPED | {"vocab_size": 300})).save_pretrained(cached / "snapshots" / commit)
    make_tokenizer().save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = describe("somebody/base")
    assert found.model.revision == commit
    assert found.model.fingerprint is not None
    assert found.notes == ()
