"""Slices in base models: PEFT's meaning exactly, every mismatch an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from flexlora_client.errors import AdapterError, DeviceError, ModelError
from flexlora_client.training.models.load_model import Models, load_encoding
from flexlora_client.training.models.slice_files import read_slice
from flexlora_client.training.models.trial_slice import trial_slice, write_trial_slice
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_shared.messages.runs import ExtraTensor, RunSpec, TaskType
from tests.support.kit import spec as small_run
from tests.support.tiny_models import (
    LABELS,
    edit_config,
    head_of,
    load_base,
    load_peft,
    make_run,
    make_slice,
    make_tokenizer,
)

IDS = torch.arange(2, 42).reshape(2, 20)
SMALL: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 300,
}
GPT2: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
DISTIL: dict[str, Any] = {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4, "max_position_embeddings": 64}


def logits(models: Models, adapter: Path, spec: RunSpec) -> torch.Tensor:
    loaded = models.with_slice(read_slice(adapter, spec), spec, "cpu")
    with torch.no_grad():
        logits: torch.Tensor = loaded.model.eval()(input_ids=IDS).logits
    return logits


def plain_logits(base: Path, adapter: Path, spec: RunSpec) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load_peft(base, spec, adapter)(input_ids=IDS).logits
    return logits


def saved(model: PreTrainedModel, directory: Path, pad: bool = True) -> Path:
    tokenizer = make_tokenizer()
    if pad:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": 3},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 8, "q_proj": 2}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 9, "q_proj": 1}, "use_rslora": True},
    ],
)
def test_ranks_alphas_and_rslora_mean_what_peft_says(llama: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec, **fields)
    torch.testing.assert_close(logits(Models(), served, spec), plain_logits(llama, served, spec), rtol=0, atol=0)


def test_one_base_model_serves_slices_of_every_rank_in_turn(llama: Path, tmp_path: Path) -> None:
    spec, models = make_run(llama), Models()
    slices = {rank: make_slice(tmp_path / str(rank), llama, spec, rank, seed=rank) for rank in (2, 4, 8)}
    expected = {rank: plain_logits(llama, served, spec) for rank, served in slices.items()}
    bases = set()
    for rank in (2, 8, 8, 4, 2, 4):
        torch.testing.assert_close(logits(models, slices[rank], spec), expected[rank], rtol=0, atol=0)
        bases.add(id(models.with_slice(read_slice(slices[rank], spec), spec, "cpu").model.get_base_model()))
    assert len(bases) == 1
    assert not torch.equal(expected[2], expected[4])


def test_another_base_model_replaces_the_first(llama: Path, bert: Path, tmp_path: Path) -> None:
    models = Models()
    for base, task in ((llama, "CAUSAL_LM"), (bert, "SEQ_CLS"), (llama, "CAUSAL_LM")):
        spec = make_run(base, "SEQ_CLS" if task == "SEQ_CLS" else "CAUSAL_LM")
        served = make_slice(tmp_path / task, base, spec)
        torch.testing.assert_close(logits(models, served, spec), plain_logits(base, served, spec), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "task", "heads"),
    [
        (lambda: BertModel(BertConfig(**SMALL)), "SEQ_CLS", ["classifier"]),
        (lambda: LlamaModel(LlamaConfig(**SMALL)), "SEQ_CLS", ["score"]),
        (lambda: RobertaModel(RobertaConfig(**(SMALL | {"pad_token_id": 1}))), "SEQ_CLS", ["classifier"]),
        (
            lambda: DistilBertModel(DistilBertConfig(vocab_size=301, **DISTIL)),
            "SEQ_CLS",
            ["classifier", "pre_classifier"],
        ),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=301, **GPT2)), "SEQ_CLS", ["score"]),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=301, **GPT2)), "CAUSAL_LM", []),
    ],
    ids=["bert", "llama", "roberta", "distilbert", "gpt2-classifier", "gpt2"],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # plain PEFT, of Conv1D
def test_heads_of_many_architectures_are_served_by_their_keys(
    tmp_path: Path, make: Callable[[], PreTrainedModel], task: TaskType, heads: list[str]
) -> None:
    base = saved(make(), tmp_path / "base")
    spec = make_run(base, task)
    assert sorted({head_of(tensor.name) for tensor in spec.extra}) == heads
    served = make_slice(tmp_path / "served", base, spec)
    keys = load_file(served / "adapter_model.safetensors").keys()
    assert {f"base_model.model.{tensor.name}" for tensor in spec.extra} == {key for key in keys if "lora_" not in key}
    torch.testing.assert_close(logits(Models(), served, spec), plain_logits(base, served, spec), rtol=0, atol=0)


def test_a_head_is_taken_from_the_slice_never_from_chance(bert: Path, tmp_path: Path) -> None:
    spec = make_run(bert, "SEQ_CLS", ["query"])
    served = make_slice(tmp_path / "served", bert, spec)
    path = served / "adapter_model.safetensors"
    tensors = load_file(path)
    head = torch.arange(96.0).reshape(3, 32)
    save_file(tensors | {"base_model.model.classifier.weight": head}, path)
    loaded = Models().with_slice(read_slice(served, spec), spec, "cpu")
    assert torch.equal(loaded.model.get_base_model().get_submodule("classifier").weight, head)  # type: ignore[arg-type]


def test_half_a_head_among_the_extra_tensors(bert: Path, tmp_path: Path) -> None:
    whole = make_run(bert, "SEQ_CLS", ["query"])
    served = make_slice(tmp_path / "served", bert, whole)
    path = served / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.classifier.bias"]
    save_file(tensors, path)
    half = whole.model_copy(update={"extra": whole.extra[:1]})
    with pytest.raises(ModelError, match=r"holds no weights for classifier\.bias; .* define them as extra tensors"):
        logits(Models(), served, half)


def test_a_head_that_lies_in_the_base_model_stays_as_it_is(tmp_path: Path) -> None:
    """A run without extra tensors: PEFT would train the head of a classifier unasked."""
    base = saved(BertForSequenceClassification(BertConfig(**(SMALL | {"num_labels": len(LABELS)}))), tmp_path / "base")
    spec = make_run(base, "SEQ_CLS", ["query"]).model_copy(update={"extra": ()})
    served = write_trial_slice(trial_slice(spec, 2), spec, tmp_path / "served")
    (served / "adapter_config.json").write_text(json.dumps(adapter_config(spec, 2, {})))  # as a coordinator serves it
    model = Models().with_slice(read_slice(served, spec), spec, "cpu").model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    plain = PeftModel.from_pretrained(load_base(base, spec), str(served))  # as whoever is given the adapter loads it
    head = load_file(base / "model.safetensors")["classifier.weight"]
    for loaded in (model, plain):
        assert torch.equal(loaded.get_base_model().get_submodule("classifier").weight, head)  # type: ignore[arg-type]


def test_a_model_without_weights_for_a_layer_that_is_not_served(tmp_path: Path) -> None:
    """A masked language model has no pooler: each participant would classify through a random one of its own."""
    base = saved(BertForMaskedLM(BertConfig(**SMALL)), tmp_path / "base")
    described = make_run(base, "SEQ_CLS", ["query"])  # serves the pooler
    heads = tuple(tensor for tensor in described.extra if tensor.name.startswith("classifier."))
    assert len(heads) == len(described.extra) - 2
    spec = described.model_copy(update={"extra": heads})
    served = make_slice(tmp_path / "served", base, spec)
    with pytest.raises(
        ModelError, match=r"holds no weights for bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight"
    ):
        logits(Models(), served, spec)


def test_a_head_saved_in_pieces_where_peft_saves_it_whole(tmp_path: Path) -> None:
    """Plain PEFT cannot load such an adapter either: it wraps the whole `classifier` besides."""
    base = saved(RobertaModel(RobertaConfig(**(SMALL | {"pad_token_id": 1}))), tmp_path / "base")
    spec = make_run(base, "SEQ_CLS", ["query"])
    served = make_slice(tmp_path / "served", base, spec)
    edit_config(served, modules_to_save=["classifier.dense", "classifier.out_proj"])
    with pytest.raises(KeyError):
        load_peft(base, spec, served)
    with pytest.raises(AdapterError, match="PEFT cannot put the slice into the base model"):
        logits(Models(), served, spec)


def test_extra_tensors_that_peft_trains_but_the_run_does_not_name(llama: Path, tmp_path: Path) -> None:
    """PEFT always trains `score` and `classifier` of a classifier."""
    base = saved(LlamaModel(LlamaConfig(**SMALL)), tmp_path / "base")
    spec = make_run(base, "SEQ_CLS", ["q_proj"])
    served = make_slice(tmp_path / "served", base, spec)
    edit_config(served, modules_to_save=["score", "model.norm"])
    with pytest.raises(AdapterError, match=r"PEFT cannot put the slice into the base model.*extra tensors"):
        logits(Models(), served, spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "model.layers.7.self_attn.q_proj"}, r"has no linear layer model\.layers\.7\.self_attn\.q_proj"),
        ({"name": "model.norm"}, r"has no linear layer model\.norm"),
        ({"out_features": 33}, r"q_proj is \[32, 32\], the run's \[33, 32\]"),
    ],
)
def test_modules_that_the_base_model_lacks(llama: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    spec = make_run(llama, target=["layers.0.self_attn.q_proj"])
    served = make_slice(tmp_path / "served", llama, spec)
    module = spec.modules[0].model_copy(update=change)
    other = spec.model_copy(update={"modules": (module,)})
    path = served / "adapter_model.safetensors"
    prefix = f"base_model.model.{module.name}"
    save_file(
        {
            f"{prefix}.lora_A.weight": torch.zeros(4, module.in_features),
            f"{prefix}.lora_B.weight": torch.zeros(module.out_features, 4),
        },
        path,
    )
    edit_config(served, target_modules=[module.name])
    with pytest.raises(AdapterError, match=message):
        logits(Models(), served, other)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (ExtraTensor(name="model.nothing.weight", shape=(3,)), r"has no tensor model\.nothing\.weight"),
        (ExtraTensor(name="model.norm.weight", shape=(3,)), r"model\.norm\.weight is \[32\], the run's \[3\]"),
    ],
)
def test_extra_tensors_that_the_base_model_lacks(llama: Path, tmp_path: Path, extra: ExtraTensor, message: str) -> None:
    spec = make_run(llama, target=["q_proj"])
    served = make_slice(tmp_path / "served", llama, spec)
    path = served / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.model.{extra.name}": torch.zeros(extra.shape)}, path)
    edit_config(served, modules_to_save=[extra.name.rpartition(".")[0]])
    with pytest.raises(AdapterError, match=message):
        logits(Models(), served, spec.model_copy(update={"extra": (extra,)}))


def test_a_failed_slice_leaves_nothing_half_loaded(llama: Path, tmp_path: Path) -> None:
    spec, models = make_run(llama, target=["q_proj"]), Models()
    served = make_slice(tmp_path / "served", llama, spec)
    expected = logits(models, served, spec)
    other = spec.model_copy(update={"extra": (ExtraTensor(name="model.norm.weight", shape=(32,)),)})
    with pytest.raises(AdapterError, match="modules_to_save"):
        logits(models, served, other)
    torch.testing.assert_close(logits(models, served, spec), expected, rtol=0, atol=0)


def test_models_that_do_not_load(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    part = read_slice(served, spec)
    with pytest.raises(ModelError, match=r"tokenizer .* does not load .*give the local path"):
        Models().with_slice(part, spec, "cpu", model_path=str(tmp_path / "none"))
    make_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"base model .* does not load"):
        Models().with_slice(part, spec, "cpu", model_path=str(tmp_path / "bare"))


def test_a_tokenizer_of_another_model(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    part = read_slice(make_slice(tmp_path / "served", llama, spec), spec)
    base = saved(load_peft(llama, spec, tmp_path / "served").unload(), tmp_path / "base")
    with pytest.raises(ModelError, match="knows 301 tokens, the model 300"):
        Models().with_slice(part, spec, "cpu", model_path=str(base))


def test_a_classifier_without_labels(bert: Path, tmp_path: Path) -> None:
    spec = make_run(bert, "SEQ_CLS", ["query"])
    part = read_slice(make_slice(tmp_path / "served", bert, spec), spec)
    bare = spec.model_copy(update={"model": spec.model.model_copy(update={"labels": ()})})
    with pytest.raises(ModelError, match="has no labels"):
        Models().with_slice(part, bare, "cpu")


def test_a_models_own_code_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks at the terminal where it has no class of its own for the task and nobody has decided."""
    asked = list[str]()

    def no(prompt: str) -> str:
        asked.append(prompt)
        return "n"

    monkeypatch.setattr("builtins.input", no)
    make_tokenizer().save_pretrained(tmp_path)
    code = {"auto_map": {"AutoModelForTokenClassification": "modeling.Own"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", **code}))
    (tmp_path / "modeling.py").write_text("raise SystemError")
    model = {"id": str(tmp_path), "task_type": "TOKEN_CLS", "labels": ["a"]}
    with pytest.raises(ModelError, match="does not load"):
        load_encoding(RunSpec.model_validate(small_run(model=model)), None)
    assert asked == []


@pytest.mark.parametrize("name", ["", "gpu", "cuda:99", "mps", "meta"])
def test_devices_that_are_not_there(llama: Path, tmp_path: Path, name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    spec = make_run(llama)
    part = read_slice(make_slice(tmp_path / "served", llama, spec), spec)
    with pytest.raises(DeviceError, match="write auto"):
        Models().with_slice(part, spec, name)
