"""Texts with classes, numbers and tagged words."""

import pytest
from transformers import PreTrainedTokenizerFast

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Labelled, Scored, Tagged
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoder, NothingToLearn
from tests.support.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def paired() -> PreTrainedTokenizerFast:
    """A tokenizer that parts pairs and gives token_type_ids, as Bert's."""
    return make_tokenizer(pairs=True)


def test_a_text_and_a_pair(paired: PreTrainedTokenizerFast) -> None:
    alone = Encoder(paired, 64).encode(Labelled("ab", 2))
    assert paired.decode(list(alone.ids)) == "<s>ab</s>"
    assert (alone.targets, alone.weight, alone.cut) == ((2,), 1, 0)
    pair = Encoder(paired, 64).encode(Labelled("ab", 2, "cde"))
    assert paired.decode(list(pair.ids)) == "<s>ab</s>cde</s>"
    assert pair.type_ids == (0, 0, 0, 0, 1, 1, 1, 1)


def test_the_longer_of_a_pair_is_cut_and_what_is_lost_is_counted(paired: PreTrainedTokenizerFast) -> None:
    made = Encoder(paired, 12).encode(Labelled("ab", 0, "q" * 30))
    assert paired.decode(list(made.ids)) == "<s>ab</s>qqqqqqq</s>"
    assert made.cut == 23
    assert len(made.type_ids) == 12


def test_numbers_for_labels(paired: PreTrainedTokenizerFast) -> None:
    made = Encoder(paired, 64).encode(Scored("ab", (0.0, 1.0, 1.0), "c"))
    assert (made.values, made.targets, made.weight) == ((0.0, 1.0, 1.0), (), 1)


def test_a_text_without_a_token() -> None:
    with pytest.raises(NothingToLearn, match="no token"):
        Encoder(make_tokenizer(bos=False), 64).encode(Labelled("", 0))


def test_the_first_token_of_each_word_has_its_tag(paired: PreTrainedTokenizerFast) -> None:
    made = Encoder(paired, 64).encode(Tagged(("The", "bird", "zz"), (5, 6, 7)))
    assert paired.decode(list(made.ids)) == "<s> The bird zz</s>"  # words have a space before them, as in a text
    tokens = paired.convert_ids_to_tokens(list(made.ids))
    starts = [n for n, token in enumerate(tokens) if token.startswith("Ġ")]
    assert [made.targets[n] for n in starts] == [5, 6, 7]
    assert made.weight == 3
    assert sum(target != IGNORE_INDEX for target in made.targets) == 3
    assert len(made.ids) == len(made.targets)


def test_words_beyond_the_limit_are_lost_and_counted(paired: PreTrainedTokenizerFast) -> None:
    whole = Encoder(paired, 64).encode(Tagged(("qqq",) * 6, (1,) * 6))
    made = Encoder(paired, 10).encode(Tagged(("qqq",) * 6, (1,) * 6))
    assert (len(made.ids), made.weight, made.cut) == (10, 2, len(whole.ids) - 10)


def test_tags_that_cannot_be_learned(paired: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="2 words have 1 tags"):
        Encoder(paired, 64).encode(Tagged(("a", "b"), (1,)))

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=paired.backend_tokenizer)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="does not tell which word"):
        Encoder(slow, 64).encode(Tagged(("a",), (1,)))
