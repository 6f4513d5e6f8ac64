"""Makes a conversation fit `max_length`: whole early turns go first, then the left of a long question.

The system prompt, the end of the last question and the end of its answer stay. Only an answer that takes more than three
quarters of what the system prompt and the template leave is cut at its end, by `encoded.of_tokens`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flexlora_client.training.data.examples import Turn
from flexlora_client.training.encoding.encoded import NothingToLearn, Tokens
from flexlora_client.training.encoding.tokenizing import Texts

SYSTEM = ("system", "developer")
QUESTION_SHARE = 4  # a quarter of the room is the question's, however long the answer
Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Fitted:
    """The turns that are left, their tokens, and what the others cost."""

    turns: Turns
    tokens: Tokens
    lost: int  # tokens
    dropped: int  # turns


def fit(texts: Texts, render: Callable[[Turns], Tokens], turns: Turns, whole: Tokens, max_length: int) -> Fitted:
    """The most turns before the last answer that fit; `whole` is what `render` gives of all.

    `render` must give the answer as the last run of learned tokens, and where it gives none, all of it must fit.

    Raises:
        NothingToLearn: the system prompt and the template's own words leave no room.
    """
    if _fits(whole, max_length):
        return Fitted(turns, whole, 0, 0)
    shorter = list(_without_early_turns(turns))
    least, most = 0, len(shorter) - 1  # the fewest turns are lost at `least`, if any is enough
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if _fits(render(shorter[middle]), max_length) else (middle + 1, most)
    kept = shorter[least]
    tokens, dropped = render(kept), len(turns) - len(kept)
    while (excess := tokens.answer - _room(texts, kept, tokens, max_length)) > 0:
        kept = _with_shorter_question(texts, kept, excess)
        tokens = render(kept)
    return Fitted(kept, tokens, len(whole.ids) - len(tokens.ids), dropped)


def _fits(tokens: Tokens, max_length: int) -> bool:
    return len(tokens.ids) <= max_length


def _room(texts: Texts, turns: Turns, tokens: Tokens, max_length: int) -> int:
    """How many tokens may stand before the answer."""
    answer = len(tokens.ids) - tokens.answer
    frame = tokens.answer - sum(len(texts.ids(turns[number].content)) for number in _given(turns))
    if frame >= max_length:
        raise NothingToLearn(
            f"what stands around a question and its answer (a system prompt, tools) leaves no room for them in {max_length} "
            "tokens; make it shorter, or ask the run's operator for a larger max_length."
        )
    return max(max_length - answer, frame + max(1, (max_length - frame) // QUESTION_SHARE))


def _given(turns: Turns) -> list[int]:
    """The turns before the answer that nobody learns: questions, inputs, what tools said."""
    return [number for number, turn in enumerate(turns[:-1]) if turn.role not in (*SYSTEM, "assistant")]


def _without_early_turns(turns: Turns) -> Iterator[Turns]:
    """The conversation from each of its questions on, the system prompt in front, the whole one first."""
    head = next((n for n, turn in enumerate(turns) if turn.role not in SYSTEM), len(turns))
    yield turns
    for number in range(head + 1, len(turns) - 1):
        if turns[number].role == "user":
            yield turns[:head] + turns[number:]


def _with_shorter_question(texts: Texts, turns: Turns, excess: int) -> Turns:
    """The longest turn that nobody learns without `excess` tokens of its left, at most half of it at a time."""
    longest = max(_given(turns), key=lambda number: len(texts.ids(turns[number].content)))
    content = turns[longest].content
    shorter = texts.without_left(content, min(excess, max(1, len(texts.ids(content)) // 2)))
    if shorter == content:  # one letter, or one token
        raise NothingToLearn("a question cannot be made short enough; ask the run's operator for a larger max_length.")
    return (*turns[:longest], replace(turns[longest], content=shorter), *turns[longest + 1 :])
