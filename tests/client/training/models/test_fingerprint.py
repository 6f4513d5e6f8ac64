"""What identifies a base model: the same files give the same digests, another model of the same shapes others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, ViTImageProcessor

from flexlora_client.errors import ModelError
from flexlora_client.training.models.fingerprint import check_fingerprint, fingerprint
from flexlora_shared.messages.runs import ModelSpec
from tests.support.tiny_models import make_llama, make_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def copied(llama: Path, folder: Path) -> Path:
    return Path(shutil.copytree(llama, folder / "copy"))


def test_a_copy_in_other_shards_is_the_same_model(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert fingerprint(str(tmp_path)) == fingerprint(str(llama))


def test_other_weights_of_the_same_shapes_are_another_model(llama: Path, tmp_path: Path) -> None:
    other = copied(llama, tmp_path)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    before, after = fingerprint(str(llama)), fingerprint(str(other))
    assert (before.weights != after.weights, before.tokenizer) == (True, after.tokenizer)
    spec = ModelSpec(id=str(llama), fingerprint=before)
    assert check_fingerprint(spec) == before
    with pytest.raises(ModelError, match=r"the weights in .*copy are not the run's: it trains .*; use that model"):
        check_fingerprint(spec, str(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}"),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<s>"),
        lambda tokenizer: tokenizer.add_tokens(["Paris"]),
    ],
    ids=["template", "end token", "vocabulary"],
)
def test_another_tokenizer_is_told_from_the_weights(
    llama: Path, tmp_path: Path, change: Callable[[PreTrainedTokenizerFast], object]
) -> None:
    other, tokenizer = copied(llama, tmp_path), make_tokenizer()
    tokenizer.save_pretrained(other)
    expected = fingerprint(str(llama))
    assert fingerprint(str(other)) == expected
    change(tokenizer)
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=r"the tokenizer in .* is not the run's"):
        check_fingerprint(ModelSpec(id=str(llama), fingerprint=expected), str(other))


def test_an_image_processor_stands_for_the_tokenizer(llama: Path, tmp_path: Path) -> None:
    base = copied(llama, tmp_path)
    digests = []
    for size in (16, 16, 32):
        ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(base)
        digests.append(fingerprint(str(base), task_type="IMAGE_CLASSIFICATION").tokenizer)
    assert digests[0] == digests[1] != digests[2]


def test_a_run_without_a_fingerprint_asks_for_none(tmp_path: Path) -> None:
    assert check_fingerprint(ModelSpec(id=str(tmp_path / "none"))) is None


def test_weights_that_cannot_be_read(llama: Path, tmp_path: Path) -> None:
    base = copied(llama, tmp_path)
    (base / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot be read"):
        fingerprint(str(base))
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors files"):
        fingerprint(str(base))
