"""Token ids and targets: what is learned, what is masked, what is cut."""

import pytest
from transformers import PreTrainedTokenizerFast

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Chat, Labelled, Plain, Prompted, Turn
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoder
from tests.support.tiny_models import make_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = Chat((Turn("user", "hello"), Turn("assistant", "good day"), Turn("user", "and?"), Turn("assistant", "bye")))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def learned(encoder: Encoder, example: Prompted | Chat | Plain) -> str:
    encoded = encoder.encode(example)
    assert len(encoded.ids) == len(encoded.targets)
    assert all(target in (token, IGNORE_INDEX) for token, target in zip(encoded.ids, encoded.targets, strict=True))
    return str(encoder.tokenizer.decode([target for target in encoded.targets if target != IGNORE_INDEX]))


def whole(encoder: Encoder, example: Prompted | Chat | Plain) -> str:
    return str(encoder.tokenizer.decode(list(encoder.encode(example).ids)))


def test_only_the_completion_and_its_end_are_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder, example = Encoder(tokenizer, 64), Prompted("What is it? ", "Paris.")
    assert whole(encoder, example) == "<s>What is it? Paris.</s>"
    assert learned(encoder, example) == "Paris.</s>"
    assert encoder.encode(example).weight == len(tokenizer("Paris.", add_special_tokens=False).input_ids) + 1


def test_all_of_a_plain_text_is_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer, 64)
    assert learned(encoder, Plain("The bird.")) == whole(encoder, Plain("The bird.")) == "<s>The bird.</s>"
    encoded = encoder.encode(Plain("The bird."))
    assert encoded.weight == len(encoded.ids) - 1  # nothing predicts the first


def test_a_long_prompt_loses_its_left_but_not_its_beginning_token(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer, 16)
    example = Prompted("q" * 40, "zzzzz")
    assert whole(encoder, example) == "<s>" + "q" * 9 + "zzzzz</s>"
    bare = Encoder(make_tokenizer(bos=False), 16)
    assert whole(bare, example) == "q" * 10 + "zzzzz</s>"


def test_a_completion_longer_than_everything_is_cut_at_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer, 16)
    assert whole(encoder, Prompted("q" * 40, "z" * 40)) == "<s>qqq" + "z" * 12  # a quarter is the prompt's
    assert encoder.encode(Prompted("q" * 40, "z" * 40)).cut == 37 + 29  # of the completion, its end too
    assert whole(encoder, Prompted("q", "z" * 40)) == "<s>q" + "z" * 14
    assert whole(encoder, Plain("z" * 40)) == "<s>" + "z" * 15
    assert encoder.encode(Plain("z" * 40)).cut == 26


def test_conversations_without_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer, 128)
    expected = "<s>user:\nhello\nassistant:\ngood day</s>\nuser:\nand?\nassistant:\nbye</s>\n"
    assert whole(encoder, TALK) == expected
    assert learned(encoder, TALK) == "good day</s>bye</s>"
    question = encoder.question(TALK)
    assert question.answer == "bye"
    assert tokenizer.decode(list(question.ids)) == expected.removesuffix("bye</s>\n")
    assert list(question.ids) == list(encoder.encode(TALK).ids[: len(question.ids)])


def test_conversations_with_the_tokenizers_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATE
    encoder = Encoder(tokenizer, 128)
    expected = "<s>[user]hello[assistant]good day</s>[user]and?[assistant]bye</s>"
    assert whole(encoder, TALK) == expected
    assert learned(encoder, TALK) == "good day</s>bye</s>"
    assert tokenizer.decode(list(encoder.question(TALK).ids)) == expected.removesuffix("bye</s>")


def test_an_opening_assistant_and_a_closing_user(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = Chat((Turn("assistant", "welcome"), Turn("user", "thanks")))
    encoder = Encoder(tokenizer, 128)
    assert whole(encoder, talk) == "<s>assistant:\nwelcome</s>\n"  # what follows the last answer teaches nothing
    assert learned(encoder, talk) == "welcome</s>"
    assert tokenizer.decode(list(encoder.question(talk).ids)) == "<s>assistant:\n"


def test_a_question_is_the_prompt_as_training_saw_it(tokenizer: PreTrainedTokenizerFast) -> None:
    question = Encoder(tokenizer, 64).question(Prompted("What is it? ", "Paris."))
    assert tokenizer.decode(list(question.ids)) == "<s>What is it? "
    assert question.answer == "Paris."


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(ModelError, match=r"rewrites earlier turns.*give the data as prompt and completion"):
        Encoder(tokenizer, 64).encode(TALK)


def test_a_conversation_that_the_template_refuses(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"refuses a conversation .roles must alternate"):
        Encoder(tokenizer, 64).encode(TALK)


def test_classified_texts_are_cut_and_keep_their_class(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = Encoder(tokenizer, 16).encode(Labelled("q" * 40, 2))
    assert len(encoded.ids) == 16
    assert encoded.targets == (2,)
    assert encoded.weight == 1


def test_a_text_of_one_token_has_nothing_to_learn() -> None:
    tokenizer = make_tokenizer(bos=False)
    assert Encoder(tokenizer, 8).encode(Plain("q")).weight == 1
    with pytest.raises(DataError, match="no token to learn"):
        Encoder(tokenizer, 1).encode(Plain("q"))


def test_a_tokenizer_without_an_end_cannot_learn_where_to_stop() -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token; set eos_token"):
        Encoder(make_tokenizer(eos=False), 64).encode(Prompted("a", "b"))
