"""A merged model computes what the base model computes with the adapter, loaded as any model of transformers is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from flexlora_client.errors import BadInput, ModelError
from flexlora_client.export import merged
from flexlora_client.export.merged import write_merged
from flexlora_shared.messages.runs import Dtype, ExtraTensor, Fingerprint, Scaling
from tests.client.export.conftest import Case, Served, logits_of, make_served
from tests.support.tiny_models import LABELS, load_base, load_peft, make_run, make_slice, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


@pytest.mark.parametrize(
    "served", ["rslora", "tied-head", pytest.param("float16", marks=pytest.mark.slow)], indirect=True
)
def test_logits_are_those_of_base_and_adapter(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "MAX_SHARD", "40KB")
    output = tmp_path / "merged"
    assert write_merged(served.folder, served.spec, None, None, output) == "float32"
    model = AutoModelForCausalLM.from_pretrained(output)
    torch.testing.assert_close(logits_of(model), served.logits, rtol=1e-5, atol=1e-5)
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"} <= names
    assert "adapter_config.json" not in names
    embeddings = [one.get_parameter("model.embed_tokens.weight") for one in (model, served.model())]
    assert torch.equal(*embeddings), "they do not change with a tied head"
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.pad_token is None, "it is the base model's, which has none"


@pytest.mark.parametrize("served", ["classification-head"], indirect=True)
def test_a_classifier_keeps_its_head_and_labels(served: Served, tmp_path: Path) -> None:
    write_merged(served.folder, served.spec, None, None, tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert tuple(model.config.id2label.values()) == LABELS
    torch.testing.assert_close(logits_of(model), served.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_embeddings_trained_in_full_are_no_longer_tied(models: dict[bool, Path], tmp_path: Path) -> None:
    base = models[True]
    spec = make_run(base, target="v_proj")
    trained = ExtraTensor(name="model.embed_tokens.weight", shape=(300, 32))
    spec = spec.model_copy(update={"extra": (trained,)})
    folder = make_slice(tmp_path / "adapter", base, spec)
    tensors = _changed(folder / "adapter_model.safetensors", "base_model.model.model.embed_tokens.weight")
    write_merged(folder, spec, None, None, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(model.model.embed_tokens.weight, tensors["base_model.model.model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight, load_base(base, spec).get_parameter("lm_head.weight"))
    expected = logits_of(load_peft(base, spec, folder))
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)


def _changed(path: Path, key: str) -> dict[str, torch.Tensor]:
    """The file with other values in one tensor."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[key] = tensors[key] + 1
    save_file(tensors, path)
    return tensors


@pytest.mark.slow
def test_layers_stored_transposed_and_biases_are_merged(tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    ).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    served = make_served(Case(Scaling(alpha=8.0), transposed=True), base, tmp_path / "adapter")
    write_merged(served.folder, served.spec, None, None, tmp_path / "merged")
    merged_model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged_model), served.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("served", ["fixed-alpha"], indirect=True)
def test_the_dtype_is_the_base_models_or_the_one_asked_for(served: Served, tmp_path: Path) -> None:
    half, written = tmp_path / "half", {}
    LlamaForCausalLM.from_pretrained(served.base, dtype=torch.bfloat16).save_pretrained(half)
    make_tokenizer().save_pretrained(half)
    for name, dtype in (("stored", None), ("asked", "float16")):
        written[name] = write_merged(served.folder, served.spec, str(half), dtype, tmp_path / name)  # type: ignore[arg-type]
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            found = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118  # it is no dict
        assert found == {getattr(torch, written[name])}
        assert AutoConfig.from_pretrained(tmp_path / name).dtype == getattr(torch, written[name])
    assert written == {"stored": "bfloat16", "asked": "float16"}


@pytest.mark.parametrize("served", ["fixed-alpha"], indirect=True)
def test_what_cannot_be_merged(served: Served, tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    served.model().save_pretrained(quantized)
    config = json.loads((quantized / "config.json").read_bytes())
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    dtypes: tuple[Dtype | None, ...] = (None, "float32")
    for dtype in dtypes:
        with pytest.raises(BadInput, match="stored quantized"):
            write_merged(served.folder, served.spec, str(quantized), dtype, tmp_path / "out")
    other = Fingerprint(weights="0" * 64, tokenizer="0" * 64)
    model = served.spec.model.model_copy(update={"fingerprint": other})
    with pytest.raises(ModelError):
        write_merged(served.folder, served.spec.model_copy(update={"model": model}), None, None, tmp_path / "out")
