"""What an example is for the model: token ids and what of them is learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flexlora_client.errors import DataError

IGNORE_INDEX = -100  # torch's cross_entropy default for targets that do not count


class NothingToLearn(DataError):
    """An example of which no token is left to learn, or that the chat template or prompt format refuses: it is left out."""


@dataclass(frozen=True)
class Tokens:
    """Token ids, and for each whether it is learned."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.ids + other.ids, self.learned + other.learned)

    @property
    def answer(self) -> int:
        """Where the last run of learned tokens begins; the number of tokens where none is learned."""
        place = max((n for n, learned in enumerate(self.learned) if learned), default=None)
        if place is None:
            return len(self.ids)
        while place > 0 and self.learned[place - 1]:
            place -= 1
        return place


@dataclass(frozen=True)
class Encoded:
    """One example for the model.

    `targets` are, by task: CAUSAL_LM and TOKEN_CLS, as long as `ids`; SEQ_2_SEQ_LM, the decoder's labels; of one label, the
    one class. What does not count is IGNORE_INDEX. `cut` and `dropped` tell what `max_length` cost.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    weight: int  # predictions that count: tokens learned (a text's first has nothing before it), words tagged, or 1
    type_ids: tuple[int, ...] = ()  # token_type_ids of a pair, where the tokenizer gives them
    values: tuple[
        float, ...
    ] = ()  # a number for each of the run's labels, of multi-label classification and regression
    image: bytes = b""  # the encoded file; pixels are made batch by batch, since they take far more memory
    further: tuple[
        "Encoded", ...
    ] = ()  # other sequences of the same example; `weight`, `cut` and `dropped` include theirs
    cut: int = 0  # tokens lost
    dropped: int = 0  # whole turns lost

    @property
    def sequences(self) -> tuple["Encoded", ...]:
        """Every sequence of the example by itself; nearly always one."""
        if not self.further:
            return (self,)
        own = self.weight - sum(other.weight for other in self.further)
        return (*self.further, replace(self, further=(), weight=own))


@dataclass(frozen=True)
class Question:
    """What a model is asked to continue, the answer expected, and others that are right."""

    ids: tuple[int, ...]
    answer: str
    references: tuple[str, ...] = ()

    @property
    def right(self) -> tuple[str, ...]:
        """Every right answer, the one expected first."""
        return (self.answer, *self.references)


def of_tokens(tokens: Tokens, max_length: int, *, learn_all: bool = False, lost: int = 0, dropped: int = 0) -> Encoded:
    """A sequence cut at `max_length`; `lost` tokens went before."""
    ids = tokens.ids[:max_length]
    learned = [True] * len(ids) if learn_all else tokens.learned
    targets = tuple(token if counts else IGNORE_INDEX for token, counts in zip(ids, learned, strict=False))
    weight = sum(target != IGNORE_INDEX for target in targets[1:])
    return Encoded(ids, targets, weight, cut=lost + len(tokens.ids) - len(ids), dropped=dropped)


def merged(sequences: Sequence[Encoded]) -> Encoded:
    """The sequences of one example as one; the last is the longest where each goes on from the one before."""
    if len(sequences) == 1:
        return sequences[0]
    return replace(
        sequences[-1],
        weight=sum(sequence.weight for sequence in sequences),
        further=tuple(sequences[:-1]),
        cut=sum(sequence.cut for sequence in sequences),
        dropped=max(sequence.dropped for sequence in sequences),
    )


def shortened(ids: tuple[int, ...], room: int, bos: object) -> tuple[int, ...]:
    """The prompt's last tokens, at most `room` (from 1); a beginning-of-sequence token in front stays there."""
    if len(ids) <= room:
        return ids
    first = ids[:1] if ids[0] == bos else ()
    return first + ids[len(ids) - room + len(first) :]
