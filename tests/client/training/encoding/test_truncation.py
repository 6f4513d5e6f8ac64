"""What is too long loses early turns first, then the left of its question; what is lost is counted."""

import pytest

from flexlora_client.training.data.examples import Chat, Instructed, Prompted, Turn
from flexlora_client.training.encoding.encoder import Encoder, NothingToLearn
from tests.support.chat_templates import CHATML, GEMMA, GENERATION, LLAMA3, QWEN3, chat_tokenizer, chatml_tokenizer
from tests.support.encoded_texts import marked
from tests.support.tiny_models import make_tokenizer

SYSTEM = Turn("system", "be kind")
EARLY = (Turn("user", "q" * 30), Turn("assistant", "a" * 20), Turn("user", "r" * 10), Turn("assistant", "b" * 10))
LAST = (Turn("user", "what?"), Turn("assistant", "c" * 10))
HEAD = "<|im_start|>system\nbe kind<|im_end|>\n"
END = "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n[[cccccccccc<|im_end|>]]"
MIDDLE = "<|im_start|>user\nrrrrrrrrrr<|im_end|>\n<|im_start|>assistant\n[[bbbbbbbbbb<|im_end|>]]\n"


def size(text: str) -> int:
    return len(chatml_tokenizer(CHATML)(text.replace("[[", "").replace("]]", ""), add_special_tokens=False).input_ids)


@pytest.mark.parametrize("template", [CHATML, GENERATION], ids=["prefixes", "generation mask"])
def test_whole_early_turns_go_and_the_system_prompt_stays(template: str) -> None:
    tokenizer, chat = chatml_tokenizer(template), Chat((SYSTEM, *EARLY, *LAST))
    room = size(HEAD + MIDDLE + END) + (1 if template == GENERATION else 0)  # it ends with a line break
    end = "\n" if template == GENERATION else ""
    assert marked(Encoder(tokenizer, room), chat) == [HEAD + MIDDLE + END + end]
    assert marked(Encoder(tokenizer, room - 1), chat) == [HEAD + END + end]
    whole = Encoder(tokenizer, 1000).encode(chat)
    assert (whole.cut, whole.dropped) == (0, 0)
    for length, dropped in ((room, 2), (room - 1, 4)):
        made = Encoder(tokenizer, length).encode(chat)
        assert made.dropped == dropped
        assert made.cut == len(whole.ids) - len(made.ids)


def test_a_template_that_needs_alternation_still_gets_it() -> None:
    tokenizer = chat_tokenizer(GEMMA, specials=("<start_of_turn>", "<end_of_turn>"))
    (text,) = marked(Encoder(tokenizer, 40), Chat((*EARLY, *LAST)))
    assert text == "<s><start_of_turn>user\nwhat?<end_of_turn>\n<start_of_turn>model\n[[cccccccccc<end_of_turn>]]"


def test_conversations_without_a_template_lose_early_turns_too() -> None:
    encoder = Encoder(make_tokenizer(), 64)
    expected = "<s>system:\nbe kind\nuser:\nwhat?\nassistant:\n[[cccccccccc</s>]]\n"
    assert marked(encoder, Chat((SYSTEM, *EARLY, *LAST))) == [expected]
    assert encoder.encode(Chat((SYSTEM, *EARLY, *LAST))).dropped == 4


def test_a_long_last_question_loses_its_left_and_keeps_its_frame() -> None:
    encoder = Encoder(chatml_tokenizer(CHATML), size(HEAD + END) + 10)
    chat = Chat((SYSTEM, *EARLY, Turn("user", "x" * 50 + "0123456789what?"), LAST[1]))
    assert marked(encoder, chat) == [HEAD + END.replace("what?", "0123456789what?")]
    assert encoder.question(chat).ids == encoder.encode(chat).ids[: len(encoder.question(chat).ids)]


def test_of_a_tools_answer_and_a_question_the_longer_one_is_shortened() -> None:
    encoder = Encoder(chatml_tokenizer(CHATML), size(HEAD + END) + 40)
    chat = Chat((SYSTEM, LAST[0], Turn("assistant", "look"), Turn("tool", "t" * 90 + "end"), LAST[1]))
    (text,) = marked(encoder, chat)
    assert text.startswith(HEAD + "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n[[look<|im_end|>]]\n")
    assert "tttend<|im_end|>" in text


def test_each_answer_of_a_rewriting_template_has_its_own_history() -> None:
    encoder = Encoder(chatml_tokenizer(QWEN3), 100)
    first, second, third = marked(encoder, Chat((SYSTEM, *EARLY, *LAST)))
    assert "q" * 30 in first
    assert first.endswith("[[<think>\n\n</think>\n\n" + "a" * 20 + "<|im_end|>]]")
    assert second.startswith(HEAD)
    assert third.startswith(HEAD)
    assert third.endswith("bbbbbbbbbb<|im_end|>\n" + END.replace("[[", "[[<think>\n\n</think>\n\n"))
    assert encoder.encode(Chat((SYSTEM, *EARLY, *LAST))).dropped == 2


def test_an_answer_that_alone_is_too_long_is_cut_at_its_end() -> None:
    encoder = Encoder(chatml_tokenizer(CHATML), 64)
    (text,) = marked(encoder, Chat((*EARLY, Turn("user", "w" * 30), Turn("assistant", "c" * 90))))
    assert text.endswith("www<|im_end|>\n<|im_start|>assistant\n[[" + "c" * text.count("c") + "]]")
    made = encoder.encode(Chat((*EARLY, Turn("user", "w" * 30), Turn("assistant", "c" * 90))))
    assert len(made.ids) == 64
    assert (text.count("w"), text.count("c")) == (13, 40)  # of the 53 tokens that the template leaves, a quarter


def test_alpaca_keeps_its_words_and_shortens_the_longer_of_instruction_and_input() -> None:
    words = len(Encoder(make_tokenizer(), 1000, "alpaca").encode(Instructed("Say it.", "x", "IT.")).ids)
    encoder = Encoder(make_tokenizer(), words + 9, "alpaca")
    (text,) = marked(encoder, Instructed("Say it.", "x" * 50, "IT."))
    assert text.endswith("### Instruction:\nSay it.\n\n### Input:\nxxxxxxxxxx\n\n### Response:[[IT.</s>]]")
    assert encoder.encode(Instructed("Say it.", "x" * 50, "IT.")).cut == 40


def test_letters_of_several_tokens_stay_whole() -> None:
    encoder = Encoder(make_tokenizer(), 17)
    assert marked(encoder, Prompted("äöü" * 20, "zzz")) == ["<s>" + "üäöüäöü"[-6:] + "[[zzz</s>]]"]


def test_a_system_prompt_that_leaves_no_room_is_told() -> None:
    encoder = Encoder(chat_tokenizer(LLAMA3), 64)
    with pytest.raises(NothingToLearn, match=r"leaves no room .* in 64 tokens.*larger max_length"):
        encoder.encode(Chat((Turn("system", "s" * 60), *LAST)))
