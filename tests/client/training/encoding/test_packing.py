"""Packed plain texts: nothing lost, nothing doubled, and the examples in them counted."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Chat, Example, Plain, Prompted, Turn
from flexlora_client.training.encoding import packing
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoded, Encoder
from flexlora_client.training.encoding.packing import Units
from flexlora_client.training.encoding.survey import survey
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_shared.messages.runs import TrainingSpec
from tests.support.chat_templates import MISTRAL, QWEN3, chat_tokenizer
from tests.support.encoded_texts import marked, marked_sequence
from tests.support.tiny_models import make_job, make_run, make_slice, make_tokenizer

TEXTS = [Plain("abc"), Plain("q" * 20), Plain("xyz")]


def test_texts_are_joined_and_cut_every_max_length_tokens() -> None:
    encoder = Encoder(make_tokenizer(), 16, packing=True)
    units = Units(encoder, TEXTS)
    made = units.encoded(range(len(units.lengths)))
    assert [marked_sequence(encoder, encoded) for encoded in made] == [
        "<s>[[abc</s>]]<s>[[" + "q" * 10 + "]]",  # how a text begins does not follow from the one before
        "[[" + "q" * 10 + "</s>]]<s>[[xyz</s>]]",
    ]
    assert [units.sources([n]) for n in range(2)] == [{0, 1}, {1, 2}]
    assert units.lengths == [16, 16]
    assert sum(encoded.cut for encoded in made) == 0


def test_other_examples_stay_by_themselves() -> None:
    encoder = Encoder(make_tokenizer(), 16, packing=True)
    asked = Prompted("w", "v")
    units = Units(encoder, [TEXTS[0], asked, TEXTS[2]])
    assert [units.sources([n]) for n in range(2)] == [{1}, {0, 2}]
    assert units.encoded([0]) == [encoder.encode(asked)]


def test_a_long_text_by_itself_is_all_its_sequences() -> None:
    encoder = Encoder(make_tokenizer(), 16, packing=True)
    assert marked(encoder, Plain("z" * 30)) == ["[[<s>" + "z" * 15 + "]]", "[[" + "z" * 15 + "</s>]]"]
    encoded = encoder.encode(Plain("z" * 30))
    assert (encoded.cut, encoded.weight) == (0, 30)
    assert all(target != IGNORE_INDEX for target in encoded.targets)


def test_without_packing_each_example_is_a_unit_and_empty_ones_are_left_out() -> None:
    encoder = Encoder(make_tokenizer(bos=False), 8)
    examples: list[Example] = [Plain("abc"), Prompted("a" * 9, "b")]
    units = Units(encoder, examples)
    assert units.lengths == [3, 10]
    assert units.encoded([1, 0]) == [encoder.encode(example) for example in examples[::-1]]
    assert units.sources([0, 1]) == {0, 1}
    nothing = Units(Encoder(make_tokenizer(bos=False), 1), [Plain("q")])
    assert nothing.encoded([0]) == []
    assert (nothing.sources([0]), nothing.empty) == (set(), {0})


def test_only_what_fits_is_kept_for_later_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Example] = []
    original = Encoder.encode

    def listening(self: Encoder, example: Example) -> Encoded:
        seen.append(example)
        return original(self, example)

    monkeypatch.setattr(packing, "KEPT_BYTES", 1000)  # one of them, and half of another
    monkeypatch.setattr(Encoder, "encode", listening)
    units = Units(Encoder(make_tokenizer(), 8), [Plain("a"), Plain("b")])
    assert units.encoded([0, 1]) == units.encoded([0, 1])
    assert seen == [Plain("a"), Plain("b"), Plain("b")]


def test_training_on_packed_texts_counts_examples_and_predictions(llama: Path, tmp_path: Path) -> None:
    training = TrainingSpec(learning_rate=0.01, batch_size=2, max_length=16, packing=True)
    spec = make_run(llama, training=training)
    served = make_slice(tmp_path / "served", llama, spec)
    texts: list[Example] = [*TEXTS, Plain("w" * 40)]
    outcome = StandardTrainer().train(make_job(spec, served, texts, tmp_path / "out"))
    assert outcome.examples == 4
    tokens = 5 + 22 + 5 + 42  # with <s> and </s>
    assert outcome.metrics["train_steps"] == 3  # five sequences, two at a time
    # nothing predicts a text's first token, nor a sequence's: 74 tokens are cut behind 16, 32 (where a text begins), 48, 64
    assert outcome.metrics["train_predictions"] == tokens - 4 - 3


def test_an_example_of_several_sequences_counts_once_however_batches_are_cut(llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "model"
    shutil.copytree(llama, base)
    chat_tokenizer(QWEN3).save_pretrained(base)
    turns = [Turn(role, f"{role[0]}{number}") for number in range(3) for role in ("user", "assistant")]
    examples: list[Example] = [Chat(tuple(turns)), Chat(tuple(turns[:2]))]
    losses = []
    for size, steps in ((2, 1), (1, 2)):  # three sequences at a time and one, or each by itself
        training = TrainingSpec(learning_rate=0.01, batch_size=size, gradient_accumulation_steps=steps, max_length=128)
        spec = make_run(base, training=training)
        served = make_slice(tmp_path / f"served{size}", base, spec)
        outcome = StandardTrainer().train(make_job(spec, served, examples, tmp_path / f"out{size}"))
        assert (outcome.examples, outcome.metrics["train_steps"]) == (2, 1)
        losses.append((outcome.metrics["train_loss"], outcome.metrics["train_predictions"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(Encoder(chat_tokenizer(QWEN3), 128).encode(examples[0]).sequences) == 3


@pytest.mark.parametrize("packing", [False, True])
def test_what_a_chat_template_refuses_is_left_out_and_told(llama: Path, tmp_path: Path, packing: bool) -> None:
    base = tmp_path / "model"
    shutil.copytree(llama, base)
    chat_tokenizer(MISTRAL).save_pretrained(base)
    spec = make_run(base, training=TrainingSpec(max_length=64, packing=packing, prompt_format="chat-template"))
    asked, said = Turn("user", "hi"), Turn("assistant", "yo")
    good, refused, told = Chat((asked, said)), Chat((asked, asked, said)), list[str]()
    job = make_job(spec, make_slice(tmp_path / "served", base, spec), [good, refused, good], tmp_path / "out")
    outcome = StandardTrainer().train(replace(job, notice=told.append))
    assert outcome.examples == 2
    assert told[0].startswith(
        "1 of 3 examples were left out of training; the first: the tokenizer's chat template refuses"
    )
    assert evaluate(spec, job.adapter, [refused, good])["answers"] == 1
    with pytest.raises(DataError, match=r"no example has a token to learn.*must alternate"):
        StandardTrainer().train(replace(job, train=[refused]))
    encoder = Encoder(chat_tokenizer(MISTRAL), 64)
    found = survey(encoder, [good, refused])
    assert (found.examples, found.empty) == (2, 1)
    assert "must alternate" in found.reason


def test_nothing_but_empty_examples_is_told(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TrainingSpec(max_length=8))
    served = make_slice(tmp_path / "served", llama, spec)
    crowded: list[Example] = [Chat((Turn("system", "s" * 40), Turn("user", "a"), Turn("assistant", "b")))]
    with pytest.raises(DataError, match="no example has a token to learn"):
        StandardTrainer().train(make_job(spec, served, crowded, tmp_path / "out"))
