"""Heads that are random and frozen, in folders that are made once."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import RobertaConfig, RobertaModel

from flexlora_client.training.models.describe_model import describe
from flexlora_simulation.errors import DataError
from flexlora_simulation.workloads.frozen_head import with_frozen_head
from flexlora_simulation.workloads.made_models import cache_folder, made_model
from tests.support.tiny_models import LABELS, make_tokenizer, make_vit


def test_layers_of_a_head_that_the_model_lacks_keep_lengths_and_angles(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(vocab_size=301, max_position_embeddings=64, pad_token_id=1, **size)  # type: ignore[arg-type]
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    made = with_frozen_head(str(tmp_path), "SEQ_CLS", LABELS, norm=3.0)
    weights = load_file(Path(made) / "model.safetensors")
    dense, last = (weights[f"classifier.{name}.weight"].numpy() for name in ("dense", "out_proj"))
    np.testing.assert_allclose(dense @ dense.T, np.eye(32), atol=2e-3)
    np.testing.assert_allclose(last @ last.T, 9 * np.eye(3), atol=1e-2)
    assert not weights["classifier.dense.bias"].any()


def test_an_image_classifier_is_whole(tmp_path: Path) -> None:
    made = with_frozen_head(str(make_vit(tmp_path)), "IMAGE_CLASSIFICATION", LABELS, norm=1.0)
    described = describe(made, "IMAGE_CLASSIFICATION", labels=LABELS)
    assert described.model.fingerprint is not None  # so its image processor lies there, too
    weight = load_file(Path(made) / "model.safetensors")["classifier.weight"].numpy()
    np.testing.assert_allclose(weight @ weight.T, np.eye(3), atol=2e-3)


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"workload\.model: .*nowhere"):
        with_frozen_head(str(tmp_path / "nowhere"), "SEQ_CLS", LABELS, norm=1.0)


def test_a_folder_that_another_process_made_meanwhile_is_taken() -> None:
    def make_first(folder: Path) -> None:
        (folder / "whose").write_text("first")

    def make_second(folder: Path) -> None:
        (folder / "whose").write_text("second")
        made_model("raced", {}, make_first)

    folder = Path(made_model("raced", {}, make_second))
    assert (folder / "whose").read_text() == "first"
    assert [path.name for path in cache_folder().glob("*raced-*")] == [folder.name]


def test_what_fails_leaves_nothing_behind() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    with pytest.raises(DataError, match="no space left"):
        made_model("failed", {}, fail)
    assert not list(cache_folder().glob("*failed-*"))
