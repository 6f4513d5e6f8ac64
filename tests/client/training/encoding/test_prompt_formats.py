"""Every kind of example of a language model by every prompt format, against texts written by hand."""

import pytest

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Chat, Choice, Example, Instructed, Plain, Prompted, Turn
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoder
from flexlora_shared.messages.runs import PromptFormat
from tests.support.chat_templates import CHATML, LLAMA3, chat_tokenizer, chatml_tokenizer
from tests.support.encoded_texts import marked, marked_sequence
from tests.support.tiny_models import make_tokenizer

PROMPTED, CHOICE = Prompted("What? ", "That."), Choice("What? ", ("This.", "That."), 1)
BARE, GIVEN = Instructed("Say it.", "", "It."), Instructed("Say it.", "Louder.", "IT.")
CHAT = Chat((Turn("system", "be kind"), Turn("user", "hello"), Turn("assistant", "bye")))
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)


@pytest.mark.parametrize(
    ("form", "example", "expected"),
    [
        ("as-is", PROMPTED, "<s>What? [[That.</s>]]"),
        ("as-is", CHOICE, "<s>What? [[That.</s>]]"),
        ("as-is", BARE, "<s>Say it.\n[[It.</s>]]"),
        ("as-is", GIVEN, "<s>Say it.\nLouder.\n[[IT.</s>]]"),
        ("as-is", CHAT, "<s>system:\nbe kind\nuser:\nhello\nassistant:\n[[bye</s>]]\n"),
        ("as-is", Plain("All of it."), "[[<s>All of it.</s>]]"),
        ("alpaca", PROMPTED, f"<s>{ALPACA}### Instruction:\nWhat? \n\n### Response:[[That.</s>]]"),
        ("alpaca", BARE, f"<s>{ALPACA}### Instruction:\nSay it.\n\n### Response:[[It.</s>]]"),
        ("alpaca", GIVEN, f"<s>{PAIRED}### Instruction:\nSay it.\n\n### Input:\nLouder.\n\n### Response:[[IT.</s>]]"),
        ("alpaca", Plain("All of it."), "[[<s>All of it.</s>]]"),
        ("chatml", CHOICE, "<s><|im_start|>user\nWhat? <|im_end|>\n<|im_start|>assistant\n[[That.</s>]]"),
        ("chatml", GIVEN, "<s><|im_start|>user\nSay it.\nLouder.<|im_end|>\n<|im_start|>assistant\n[[IT.</s>]]"),
        (
            "chatml",
            CHAT,
            "<s><|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[bye</s>]]",
        ),
    ],
)
def test_what_the_model_sees_and_learns(form: PromptFormat, example: Example, expected: str) -> None:
    assert marked(Encoder(make_tokenizer(), 512, form), example) == [expected]
    plain = expected.replace("[[", "").replace("]]", "")
    assert marked(Encoder(make_tokenizer(), 512, form, learn_all=True), example) == [f"[[{plain}]]"]


def test_ids_and_targets_by_hand() -> None:
    tokenizer = make_tokenizer()
    tokens = ["<s>", "W", "hat", "?", "Ġ", "T", "hat", ".", "</s>"]
    made = Encoder(tokenizer, 64).encode(PROMPTED)
    found = tokenizer.convert_ids_to_tokens(list(made.ids))
    assert "".join(found) == "".join(tokens)
    assert found[0] == "<s>"
    at = len(tokenizer("<s>What? ", add_special_tokens=False).input_ids)
    assert made.targets == (IGNORE_INDEX,) * at + made.ids[at:]
    assert made.ids[-1] == made.targets[-1] == 1  # the end-of-sequence token, also where it is what pads


def test_chatml_of_a_tokenizer_that_knows_its_tokens() -> None:
    encoder = Encoder(chatml_tokenizer(LLAMA3), 128, "chatml")
    expected = "<s><|im_start|>user\nWhat? <|im_end|>\n<|im_start|>assistant\n[[That.<|im_end|>]]"
    assert marked(encoder, PROMPTED) == [expected]
    other = chat_tokenizer(LLAMA3, specials=("<|im_start|>", "<|im_end|>"))
    assert marked(Encoder(other, 128, "chatml"), PROMPTED)[0].endswith("[[That.<|im_end|></s>]]")


def test_formats_that_have_no_form_for_an_example() -> None:
    with pytest.raises(ModelError, match="this tokenizer has none"):
        Encoder(make_tokenizer(), 64, "chat-template").encode(PROMPTED)
    with pytest.raises(DataError, match="alpaca, has no form for a conversation"):
        Encoder(make_tokenizer(), 64, "alpaca").encode(CHAT)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Encoder(make_tokenizer(eos=False), 64, "alpaca").encode(PROMPTED)


def test_special_tokens_that_the_data_holds_are_not_doubled() -> None:
    encoder = Encoder(make_tokenizer(), 64)
    assert marked(encoder, Prompted("<s>What? ", "That.</s>")) == ["<s>What? [[That.</s>]]"]
    assert marked(encoder, Plain("<s>All.</s>")) == ["[[<s>All.</s>]]"]


@pytest.mark.parametrize("form", ["as-is", "alpaca", "chatml", "chat-template"])
def test_a_question_is_the_prompt_as_training_saw_it(form: PromptFormat) -> None:
    encoder = Encoder(chatml_tokenizer(CHATML), 512, form)
    for example in (PROMPTED, CHOICE, GIVEN):
        encoded, question = encoder.encode(example), encoder.question(example)
        learned = [target for target in encoded.targets if target != IGNORE_INDEX]
        assert encoded.ids == question.ids + tuple(learned)
        assert question.answer == ("IT." if example is GIVEN else "That.")


def test_choices_follow_the_same_prompt_and_only_they_count() -> None:
    encoder = Encoder(make_tokenizer(), 32, learn_all=True)
    texts = [marked_sequence(encoder, choice) for choice in encoder.choices(CHOICE)]
    assert texts == ["<s>What? [[This.</s>]]", "<s>What? [[That.</s>]]"]
    long = Choice("q" * 60, ("z" * 10, "y"), 1)
    assert [marked_sequence(encoder, choice) for choice in encoder.choices(long)] == [
        "<s>" + "q" * 20 + "[[" + "z" * 10 + "</s>]]",
        "<s>" + "q" * 20 + "[[y</s>]]",
    ]
