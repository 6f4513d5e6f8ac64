"""Batches and losses of every task, against transformers' own losses."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import (
    Chat,
    Example,
    Labelled,
    Pictured,
    Plain,
    Prompted,
    Scored,
    Tagged,
    Turn,
)
from flexlora_client.training.encoding.batches import collate, predictions, summed_loss
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoder
from flexlora_client.training.models.load_model import LoadedModel
from tests.support.chat_templates import QWEN3, chatml_tokenizer
from tests.support.tiny_models import make_tokenizer

ROLES = ("user", "assistant")
SMALL: dict[str, Any] = {"vocab_size": 301, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
BERT = SMALL | {"num_attention_heads": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELLED = BERT | {"num_labels": 3}


def load(model: type[PreTrainedModel], config: Any, **fields: Any) -> LoadedModel:
    """A random model as training has it."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    options: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "preprocessor": tokenizer,
        "max_length": 64,
        "positions": 64,
    } | fields
    made: Any = model(config)
    return LoadedModel(made.eval(), device=torch.device("cpu"), dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return load(LlamaForCausalLM, LlamaConfig(**SMALL, num_attention_heads=2, initializer_range=0.5))


def loss(loaded: LoadedModel, encoder: Encoder, *examples: Example) -> float:
    return summed_loss(loaded, collate([encoder.encode(example) for example in examples], loaded)).item()


def test_padding_and_order_change_no_loss_of_a_language_model(llama: LoadedModel) -> None:
    encoder = Encoder(llama.tokenizer, 64)
    examples: list[Example] = [Prompted("a", "b"), Prompted("Which one is it? ", "This one, or that."), Plain("x" * 20)]
    alone = sum(loss(llama, encoder, example) for example in examples)
    assert loss(llama, encoder, *examples) == pytest.approx(alone, rel=1e-5)
    assert loss(llama, encoder, *reversed(examples)) == pytest.approx(alone, rel=1e-5)
    encoded = encoder.encode(examples[1])
    ids, labels = torch.tensor([encoded.ids]), torch.tensor([encoded.targets])
    expected = llama.model(input_ids=ids, labels=labels).loss.item() * encoded.weight
    assert loss(llama, encoder, examples[1]) == pytest.approx(expected, rel=1e-5)


def test_the_token_that_pads_is_learned_where_it_ends_an_answer(llama: LoadedModel) -> None:
    encoder = Encoder(llama.tokenizer, 64)
    batch = collate([encoder.encode(Prompted("a", "b")), encoder.encode(Prompted("a", "bcdef"))], llama)
    assert llama.pad_id == 1
    assert batch.targets[0].tolist().count(1) == 1  # once, not where it pads
    assert batch.attention_mask[0].tolist() == [1] * 4 + [0] * 4
    assert batch.input_ids[0].tolist()[3:] == [1] * 5


def test_sequences_of_one_example_are_rows_of_their_own(llama: LoadedModel) -> None:
    encoder = Encoder(chatml_tokenizer(QWEN3), 128)
    turns = [Turn(role, role[0] * 3) for role in ROLES * 2]
    encoded = encoder.encode(Chat(tuple(turns)))
    wide = replace(
        llama, model=load(LlamaForCausalLM, LlamaConfig(**SMALL | {"vocab_size": 310}, num_attention_heads=2)).model
    )
    batch = collate([encoded], wide)
    assert batch.input_ids.shape[0] == 2
    assert len(predictions(wide, batch)[1]) == encoded.weight
    alone = sum(summed_loss(wide, collate([one], wide)).item() for one in encoded.sequences)
    assert summed_loss(wide, batch).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("problem", "theirs", "examples"),
    [
        ("single-label", "single_label_classification", [Labelled("ab", 2), Labelled("abcdef", 0, "g")]),
        ("multi-label", "multi_label_classification", [Scored("ab", (0.0, 1.0, 1.0)), Scored("abc", (1.0, 0.0, 0.0))]),
        ("regression", "regression", [Scored("ab", (0.5, 3.0, -1.0)), Scored("abc", (0.0, 2.0, 1.0))]),
    ],
)
def test_losses_of_classifiers_are_transformers_own(problem: Any, theirs: Any, examples: list[Example]) -> None:
    config = BertConfig(**LABELLED, problem_type=theirs)
    loaded = load(BertForSequenceClassification, config, task_type="SEQ_CLS", problem_type=problem)
    encoder = Encoder(loaded.tokenizer, 64)
    batch = collate([encoder.encode(example) for example in examples], loaded)
    labels = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.targets}
    assert loss(loaded, encoder, *examples) == pytest.approx(2 * loaded.model(**labels).loss.item(), rel=1e-5)
    alone = sum(loss(loaded, encoder, example) for example in examples)
    assert loss(loaded, encoder, *examples) == pytest.approx(alone, rel=1e-4)
    logits, targets = predictions(loaded, batch)
    assert logits.shape == (2, 3)
    assert targets.shape == ((2,) if problem == "single-label" else (2, 3))


def test_pairs_are_told_apart_by_their_types() -> None:
    loaded = load(BertForSequenceClassification, BertConfig(**LABELLED), task_type="SEQ_CLS")
    encoded = Encoder(loaded.tokenizer, 64).encode(Labelled("ab", 1, "cd"))
    typed = replace(encoded, type_ids=(0,) * 2 + (1,) * (len(encoded.ids) - 2))
    longer = replace(typed, ids=(*typed.ids, 9), type_ids=(*typed.type_ids, 1))
    batch = collate([typed, longer], loaded)
    assert batch.type_ids is not None
    assert batch.type_ids[0].tolist() == [0, 0, *[1] * (len(encoded.ids) - 2), 0]
    alone = summed_loss(loaded, collate([typed], loaded)).item()
    assert alone != pytest.approx(summed_loss(loaded, collate([encoded], loaded)).item(), rel=1e-6)


def test_the_loss_of_tags_is_transformers_own() -> None:
    loaded = load(BertForTokenClassification, BertConfig(**LABELLED), task_type="TOKEN_CLS")
    encoder = Encoder(loaded.tokenizer, 64)
    examples = [Tagged(("The", "bird"), (0, 2)), Tagged(("It", "swims", "under", "it"), (1, 1, 0, 2))]
    batch = collate([encoder.encode(example) for example in examples], loaded)
    theirs = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.targets)
    assert loss(loaded, encoder, *examples) == pytest.approx(6 * theirs.loss.item(), rel=1e-5)
    assert predictions(loaded, batch)[1].tolist() == [0, 2, 1, 1, 0, 2]


def test_an_encoder_and_decoder_learns_the_answer_from_the_prompt() -> None:
    config = BartConfig(
        vocab_size=301, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=1, eos_token_id=1, decoder_start_token_id=1, init_std=0.5,
    )  # fmt: skip
    loaded = load(BartForConditionalGeneration, config, task_type="SEQ_2_SEQ_LM")
    encoder = Encoder(loaded.tokenizer, 16, seq2seq=True)
    made = encoder.encode(Prompted("What?", "That."))
    decode = loaded.tokenizer.decode
    assert (decode(list(made.ids)), decode(list(made.targets))) == ("<s>What?", "<s>That.</s>")
    assert made.weight == len(made.targets)
    examples = [Prompted("What?", "That."), Prompted("Which one is it?", "x" * 40)]
    encoded = [encoder.encode(example) for example in examples]
    assert (len(encoded[1].targets), encoded[1].cut) == (16, 26)
    batch = collate(encoded, loaded)
    assert batch.targets[0].tolist()[-1] == IGNORE_INDEX
    theirs = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.targets).loss
    weight = sum(one.weight for one in encoded)
    assert summed_loss(loaded, batch).item() == pytest.approx(weight * theirs.item(), rel=1e-5)
    assert loss(loaded, encoder, *examples) == pytest.approx(sum(loss(loaded, encoder, e) for e in examples), rel=1e-5)
    turns = tuple(Turn(role, role[0] * 3) for role in ROLES * 2)
    assert [decode(list(one.targets)) for one in encoder.encode(Chat(turns)).sequences] == ["<s>aaa</s>"] * 2
    with pytest.raises(DataError, match="plain text has no answer"):
        encoder.encode(Plain("All."))


def picture(mode: str, file_format: str, colour: Any) -> bytes:
    file = BytesIO()
    Image.new(mode, (24, 16), colour).save(file, file_format)
    return file.getvalue()


def test_images_of_any_kind_become_pixels_of_one_shape() -> None:
    config = ViTConfig(**LABELLED, image_size=16, patch_size=8)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    loaded = load(ViTForImageClassification, config, task_type="IMAGE_CLASSIFICATION", preprocessor=processor)
    encoder = Encoder(make_tokenizer(), 64)
    images = [
        picture("RGB", "PNG", (255, 0, 0)), picture("P", "GIF", 3), picture("L", "JPEG", 9), picture("RGBA", "PNG", (1, 2, 3, 0)),
    ]  # fmt: skip
    examples = [Pictured(image, n % 3) for n, image in enumerate(images)]
    batch = collate([encoder.encode(example) for example in examples], loaded)
    assert batch.pixels is not None
    assert batch.pixels.shape == (4, 3, 16, 16)
    torch.testing.assert_close(batch.pixels[0, :, 5, 5], torch.tensor([1.0, -1.0, -1.0]))
    theirs = loaded.model(pixel_values=batch.pixels, labels=batch.targets).loss.item()
    assert loss(loaded, encoder, *examples) == pytest.approx(4 * theirs, rel=1e-5)
    with pytest.raises(DataError, match="an image cannot be read"):
        encoder.encode(Pictured(b"no image", 0))
    broken = encoder.encode(Pictured(images[2], 0))
    with pytest.raises(DataError, match="an image cannot be read"):
        collate([replace(broken, image=images[2][:300])], loaded)


WORDS = st.text(st.sampled_from("ab \näü</s>"), min_size=1, max_size=40)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)
EXAMPLES = st.one_of(
    st.builds(Prompted, WORDS, WORDS),
    st.builds(Plain, WORDS),
    st.builds(
        lambda pairs: Chat(tuple(Turn(*turn) for pair in pairs for turn in zip(ROLES, pair, strict=True))), TURNS
    ),
)


@settings(max_examples=40, deadline=None, database=None)
@given(EXAMPLES, st.integers(64, 99), st.sampled_from(["as-is", "chatml"]), st.booleans())
def test_what_holds_for_every_example(example: Example, max_length: int, form: Any, packing: bool) -> None:
    encoded = Encoder(make_tokenizer(), max_length, form, packing=packing).encode(example)
    for sequence in encoded.sequences:
        assert 0 < len(sequence.ids) <= max_length
        assert all(
            target in (token, IGNORE_INDEX) for token, target in zip(sequence.ids, sequence.targets, strict=True)
        )
        assert sequence.weight == sum(target != IGNORE_INDEX for target in sequence.targets[1:])
        assert 0 not in sequence.ids[1:] or "<s>" in str(example)  # beginning of sequence, where no text spells it
    assert encoded.weight > 0
    if not encoded.cut and "</s>" not in str(example):
        learned = [target for sequence in encoded.sequences for target in sequence.targets if target != IGNORE_INDEX]
        answers = sum(turn.role == "assistant" for turn in example.turns) if isinstance(example, Chat) else 1
        assert (learned.count(1), learned[-1]) == (answers, 1)  # each answer ends, once
