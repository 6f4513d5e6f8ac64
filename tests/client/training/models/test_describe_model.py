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
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PretrainedConfig,
    Qwen2Config,
    RobertaConfig,
)

from flexlora_client.errors import ModelError
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_shared.messages.runs import RunSpec, TaskType

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
    sizes: dict[str, Any] = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    LlamaConfig(**TOKENS, **sizes, num_attention_heads=64, num_key_value_heads=8).save_pretrained(tmp_path)
    modules = describe(str(tmp_path)).modules
    assert len(modules) == 560
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
