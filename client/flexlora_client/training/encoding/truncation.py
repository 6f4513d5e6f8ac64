"""Makes a conversation fit `max_length`: whole early turns go first, then the left of a long question.

The system prompt, the end of the last question and the end of its answer stay. An answer may take three quarters of the room
from a question that is too long as well; what is longer than that is cut at its end by `encoded.of_tokens`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from flexlora_client.training.data.examples import Turn
from flexlora_client.training.encoding.encoded import NothingToLearn, Tokens
from flexlora_client.training.encoding.tokenizing import Texts

SYSTEM = ("system", "developer")
QUESTION_SHARE = 4  # a quarter of max_length is the question's, however long the answer
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
    tokens = render(kept)
    dropped = len(turns) - len(kept)
    while not _fits(tokens, max_length):
        kept = _with_shorter_question(texts, kept, tokens.answer - _room(tokens, max_length), max_length)
        tokens = render(kept)
    return Fitted(kept, tokens, len(whole.ids) - len(tokens.ids), dropped)


def _room(tokens: Tokens, max_length: int) -> int:
    """How many tokens may stand before the answer."""
    return max(max_length - (len(tokens.ids) - tokens.answer), max_length // QUESTION_SHARE)


def _fits(tokens: Tokens, max_length: int) -> bool:
    return tokens.answer <= _room(tokens, max_length)


def _without_early_turns(turns: Turns) -> Iterator[Turns]:
    """The conversation from each of its questions on, the system prompt in front, the whole one first."""
    head = next((n for n, turn in enumerate(turns) if turn.role not in SYSTEM), len(turns))
    yield turns
    for number in range(head + 1, len(turns) - 1):
        if turns[number].role == "user":
            yield turns[:head] + turns[number:]


def _with_shorter_question(texts: Texts, turns: Turns, excess: int, max_length: int) -> Turns:
    """The longest turn that nobody learns without `excess` tokens of its left."""
    given = [n for n, turn in enumerate(turns[:-1]) if turn.role not in (*SYSTEM, "assistant")]
    longest = max(given, key=lambda n: len(texts.ids(turns[n].content)), default=None)
    content = "" if longest is None else texts.without_left(turns[longest].content, excess)
    if longest is None or content == turns[longest].content:
        raise NothingToLearn(
            f"what stands around a question and its answer (a system prompt, tools) leaves no room for them in {max_length} "
            "tokens; make it shorter, or ask the run's operator for a larger max_length."
        )
    return _replaced(turns, longest, content)


def _replaced(turns: Sequence[Turn], number: int, content: str) -> Turns:
    return (*turns[:number], replace(turns[number], content=content), *turns[number + 1 :])
