"""Which models suit a task; whether a language model sees what it predicts, judged by the models themselves."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from flexlora_client.errors import ModelError
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_client.training.models.task_classes import load_config
from flexlora_shared.messages.runs import ModelSpec, ProblemType
from tests.support.tiny_models import LABELS, make_run, make_slice, make_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "initializer_range": 0.5,
}
XLNET: dict[str, Any] = {"vocab_size": 304, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 24, "pad_token_id": 2}
XLM: dict[str, Any] = {"vocab_size": 304, "emb_dim": 32, "n_layers": 1, "n_heads": 4, "pad_token_id": 2}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", SMALL),
        ("bert", SMALL | {"is_decoder": True}),
        ("roberta", SMALL),
        ("roberta", SMALL | {"is_decoder": True}),
        ("electra", SMALL),
        ("xlm-roberta", SMALL),
        ("bert-generation", SMALL),
        ("xlnet", XLNET),
        ("xlm", XLM),
        ("xlm", XLM | {"causal": True}),
        ("gpt_neox", SMALL),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.keys() & {"is_decoder", "causal"}),
)
def test_a_model_that_sees_what_it_predicts_is_refused(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """A later token changes what the model says of earlier ones, exactly where it is refused."""
    config = AutoConfig.for_model(kind, **settings)
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config).eval()
    ids = torch.tensor([[5, 9, 200, 17], [5, 9, 200, 120]])
    with torch.no_grad():
        first, second = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
    causal = torch.allclose(first, second, atol=1e-6)
    refusal = pytest.raises(ModelError, match="it would see the tokens that it is to predict")
    with nullcontext() if causal else refusal:
        load_config(str(tmp_path), None, ModelSpec(id="base"))


def test_an_encoder_decoder_is_no_causal_model(tmp_path: Path) -> None:
    AutoConfig.for_model("whisper").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="use task type SEQ_2_SEQ_LM"):
        load_config(str(tmp_path), None, ModelSpec(id="base"))


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ("single-label", "single_label_classification"),
        ("multi-label", "multi_label_classification"),
        ("regression", "regression"),
    ],
)
def test_labels_and_problem_type_are_in_the_configuration(problem: ProblemType, told: str, tmp_path: Path) -> None:
    BertConfig(**SMALL | {"num_labels": 7}).save_pretrained(tmp_path)
    model = ModelSpec(id="base", task_type="SEQ_CLS", labels=LABELS, problem_type=problem)
    config = load_config(str(tmp_path), None, model)
    assert (config.num_labels, config.problem_type) == (3, told)
    assert config.id2label == {0: "bird", 1: "fish", 2: "tree"}
    assert config.label2id == {"bird": 0, "fish": 1, "tree": 2}


def test_robertas_positions_are_less_than_its_table_has_rows(tmp_path: Path) -> None:
    """Positions begin after the padding token's number: one more token than that raises an error."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    RobertaForSequenceClassification(RobertaConfig(**SMALL)).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    spec = make_run(base, "SEQ_CLS", ["query"])
    loaded = Models().with_slice(read_slice(make_slice(tmp_path / "slice", base, spec), spec), spec, "cpu")
    assert loaded.positions == 64 - 2 - 1
    assert loaded.max_length == loaded.positions
    assert loaded.model.config.id2label == dict(enumerate(LABELS))
    ids = torch.full((1, loaded.positions), 5)
    assert loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)
    ids = torch.full((1, loaded.positions + 1), 5)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_no_code_of_a_model_is_run(tmp_path: Path) -> None:
    """A model that brings its own code is refused, not asked about at the terminal."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}'
    )
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_config(str(tmp_path), None, ModelSpec(id="base"))
