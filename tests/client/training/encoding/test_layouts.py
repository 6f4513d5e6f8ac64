"""Conversations by the templates that models have: what the model sees, and what of it is learned."""

from typing import Any

import pytest

from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Chat, Prompted, Turn
from flexlora_client.training.encoding.encoder import Encoder
from tests.support.chat_templates import (
    CHATML,
    ENDLESS,
    GEMMA,
    GENERATION,
    LLAMA3,
    MISTRAL,
    QWEN3,
    THINKING,
    chat_tokenizer,
    chatml_tokenizer,
)
from tests.support.encoded_texts import marked

HELLO, BYE = (Turn("user", "hello"), Turn("assistant", "good day")), (Turn("user", "and?"), Turn("assistant", "bye"))
TALK = Chat((*HELLO, *BYE))
SYSTEM = Turn("system", "be kind")


def test_chatml_learns_the_stop_token_and_not_the_line_break_after_it() -> None:
    encoder = Encoder(chatml_tokenizer(CHATML), 128)
    assert marked(encoder, Chat((SYSTEM, *TALK.turns))) == [
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        "[[good day<|im_end|>]]\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n[[bye<|im_end|>]]"
    ]


def test_ids_are_those_of_the_whole_text_as_transformers_gives_them() -> None:
    tokenizer = chatml_tokenizer(CHATML)
    encoder = Encoder(tokenizer, 128)
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK.turns]
    whole: Any = tokenizer.apply_chat_template(messages, return_dict=False)
    opened: Any = tokenizer.apply_chat_template(messages[:3], return_dict=False, add_generation_prompt=True)
    newline = len(tokenizer("\n", add_special_tokens=False).input_ids)
    assert list(encoder.encode(TALK).ids) == whole[:-newline]
    assert list(encoder.question(TALK).ids) == opened


@pytest.mark.parametrize(
    ("template", "specials", "expected"),
    [
        (
            LLAMA3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<s><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            "[[good day<|eot_id|>]]<|start_header_id|>user<|end_header_id|>\n\nand?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[[bye<|eot_id|>]]",
        ),
        (MISTRAL, (), "<s>[INST] hello [/INST][[ good day</s>]][INST] and? [/INST][[ bye</s>]]"),
        (
            GEMMA,
            ("<start_of_turn>", "<end_of_turn>"),
            "<s><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n[[good day<end_of_turn>]]\n"
            "<start_of_turn>user\nand?<end_of_turn>\n<start_of_turn>model\n[[bye<end_of_turn>]]",
        ),
        (THINKING, (), "<s>[user]hello[assistant][[good day</s>]][user]and?[assistant][[bye</s>]]"),
        (ENDLESS, (), "user: hello\nassistant: [[good day\n]]user: and?\nassistant: [[bye\n</s>]]"),
    ],
    ids=["llama3", "mistral", "gemma", "thinking", "endless"],
)
def test_answers_are_learned_with_their_stop_token(template: str, specials: tuple[str, ...], expected: str) -> None:
    encoder = Encoder(chat_tokenizer(template, specials=specials), 128)
    assert marked(encoder, TALK) == [expected]
    assert encoder.encode(TALK).ids.count(0) == expected.count("<s>")  # once, although the tokenizer adds it too


@pytest.mark.parametrize("template", [MISTRAL, GEMMA], ids=["mistral", "gemma"])
@pytest.mark.parametrize(
    ("turns", "reason"),
    [((SYSTEM, *HELLO), "System role not supported"), ((HELLO[0], *HELLO), "must alternate")],
    ids=["system", "two users"],
)
def test_what_a_template_refuses_is_told(template: str, turns: tuple[Turn, ...], reason: str) -> None:
    with pytest.raises(DataError, match=f"chat template refuses a conversation .*{reason}.*change its turns"):
        Encoder(chat_tokenizer(template), 128).encode(Chat(turns))


def test_a_template_that_marks_what_is_generated_decides() -> None:
    encoder = Encoder(chatml_tokenizer(GENERATION), 128)
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[good day<|im_end|>]]\n"
    assert marked(encoder, Chat(HELLO)) == [expected]
    assert marked(encoder, TALK)[0].count("[[") == 2


def test_an_end_that_the_template_leaves_outside_its_mask_is_learned_too() -> None:
    outside = GENERATION.replace(
        "m.content + '<|im_end|>' }}{% endgeneration %}{{ '", "m.content }}{% endgeneration %}{{ '<|im_end|>"
    )
    assert marked(Encoder(chatml_tokenizer(outside), 128), Chat(HELLO))[0].endswith("[[good day<|im_end|>]]\n")


def test_a_template_that_rewrites_earlier_answers_gives_one_sequence_an_answer() -> None:
    encoder = Encoder(chatml_tokenizer(QWEN3), 256)
    first = Turn("assistant", "<think>\nwho is it\n</think>\n\ngood day")
    encoded = encoder.encode(Chat((HELLO[0], first, *BYE)))
    assert marked(encoder, Chat((HELLO[0], first, *BYE))) == [
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        "[[<think>\nwho is it\n</think>\n\ngood day<|im_end|>]]",
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\ngood day<|im_end|>\n"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nbye<|im_end|>]]",
    ]
    assert encoded.weight == sum(sequence.weight for sequence in encoded.sequences)
    assert len(marked(encoder, Chat(HELLO))) == 1
    assert len(marked(Encoder(chatml_tokenizer(QWEN3), 256, learn_all=True), TALK)) == 1  # nothing to tell apart


def test_the_answer_asked_for_is_what_the_template_writes() -> None:
    question = Encoder(chatml_tokenizer(QWEN3), 256).question(TALK)
    assert question.answer == "<think>\n\n</think>\n\nbye"


def test_tools_and_tool_calls_are_the_templates_to_write() -> None:
    call = '{"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}]}'
    turns = (Turn("user", "one"), Turn("assistant", "", call), Turn("tool", "2"), Turn("assistant", "two"))
    chat = Chat(turns, tools='[{"type": "function", "function": {"name": "add"}}]')
    (text,) = marked(Encoder(chatml_tokenizer(QWEN3), 256), chat)
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "add"}}<|im_end|>\n')
    assert '<tool_call>{"a": 1}</tool_call><|im_end|>]]\n<|im_start|>tool\n2<|im_end|>' in text
    for form in (Encoder(chatml_tokenizer(CHATML), 256), Encoder(chatml_tokenizer(QWEN3), 256, "chatml")):
        with pytest.raises(DataError, match=r"has tools, for which .* no place"):
            form.encode(chat)


def test_a_template_whose_history_changes_with_the_answer_is_refused() -> None:
    tokenizer = chat_tokenizer("{{ messages | length }}" + CHATML)
    with pytest.raises(ModelError, match=r"rewrites earlier turns.*give the data as prompt and completion"):
        Encoder(tokenizer, 64).encode(Chat(HELLO))


def test_a_prompt_by_the_tokenizers_template() -> None:
    encoder = Encoder(chatml_tokenizer(CHATML), 128, "chat-template")
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[good day<|im_end|>]]"
    assert marked(encoder, Prompted("hello", "good day")) == [expected]
    assert encoder.encode(Prompted("hello", "good day")) == encoder.encode(Chat(HELLO))


@pytest.mark.parametrize("template", [CHATML, GENERATION], ids=["prefixes", "generation mask"])
def test_a_tokenizer_that_does_not_tell_where_tokens_came_from(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Encoder(chatml_tokenizer(template), 64)
    slow = Encoder(chatml_tokenizer(template), 64)
    monkeypatch.setattr(type(slow.tokenizer), "is_fast", False)
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[good day<|im_end|>]]"
    assert marked(slow, Chat(HELLO)) == [expected]
    long = Chat((Turn("user", "q" * 90 + "?"), HELLO[1]))
    (text,) = marked(slow, long)
    assert len(slow.encode(long).ids) <= 64
    assert text.endswith("qqq?<|im_end|>\n<|im_start|>assistant\n[[good day<|im_end|>]]")
    monkeypatch.undo()
    assert [text, text + "\n"][template == GENERATION].replace("q", "") == marked(fast, long)[0].replace("q", "")
