"""What training steps are made of: examples, or plain texts joined into sequences of `max_length` tokens.

Packing leaves no padding where texts are short, and loses nothing where they are long. It is plain concatenation, as in
pretraining: each text has its tokens in front and the end-of-sequence token behind, and attention reaches into the text
before it, which not every architecture could keep from there (state-space models cannot).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from flexlora_client.training.data.examples import Example, Plain
from flexlora_client.training.data.store import lengths_of
from flexlora_client.training.encoding.encoded import Encoded, NothingToLearn, Tokens, of_tokens
from flexlora_client.training.encoding.encoder import Encoder

KEPT_BYTES = 64 << 20  # of encoded examples, which later epochs find again; others are encoded once an epoch
BYTES_PER_TOKEN = 60  # a number of Python, and its places in `ids` and `targets`


@dataclass(frozen=True)
class Unit:
    """What is trained on at once: an example, or a sequence of several. `sources`: the examples in it, by index."""

    encoded: Encoded
    sources: tuple[int, ...]


class Units:
    """The units of a participant's examples, encoded when a step needs them; packed ones at once, and kept in memory.

    `empty`: the examples met so far that are left out, by index; `reason`: why the first of them is.
    """

    def __init__(self, encoder: Encoder, examples: Sequence[Example]) -> None:
        self._encoder, self._examples = encoder, examples
        self._kept: dict[int, Encoded] = {}
        self._room = KEPT_BYTES
        self.empty = set[int]()
        self.reason = ""
        self._packed = self._pack() if encoder.packing else None

    @property
    def lengths(self) -> list[int]:
        """How long each is, for the plan of the steps: in characters, packed ones in tokens."""
        if self._packed is None:
            return lengths_of(self._examples)
        return [len(unit.encoded.ids) for unit in self._packed]

    def encoded(self, indices: Iterable[int]) -> list[Encoded]:
        """The units of these indices that have something to learn."""
        if self._packed is not None:
            return [self._packed[index].encoded for index in indices]
        made = [self._made(index) for index in indices if index not in self.empty]
        return [encoded for encoded in made if encoded is not None]

    def sources(self, indices: Iterable[int]) -> set[int]:
        """The examples in these units, by index, without the units known to be empty."""
        if self._packed is not None:
            return {source for index in indices for source in self._packed[index].sources}
        return set(indices) - self.empty

    def _made(self, index: int) -> Encoded | None:
        if index in self._kept:
            return self._kept[index]
        encoded = self._encode(index, self._examples[index])
        if encoded is not None and (size := _size(encoded)) <= self._room:
            self._kept[index], self._room = encoded, self._room - size
        return encoded

    def _encode(self, index: int, example: Example) -> Encoded | None:
        try:
            return self._encoder.encode(example)
        except NothingToLearn as error:
            self.empty.add(index)
            self.reason = self.reason or str(error)
            return None

    def _pack(self) -> list[Unit]:
        """Plain texts joined and cut every `max_length` tokens; other examples by themselves."""
        units: list[Unit] = []
        ids: list[int] = []
        learned: list[bool] = []
        owners: list[int] = []
        for index, example in enumerate(self._examples):
            if not isinstance(example, Plain):
                encoded = self._encode(index, example)
                units += [Unit(encoded, (index,))] if encoded is not None else []
                continue
            text = self._encoder.plain(example)
            ids += text
            learned += [False] + [True] * (len(text) - 1)  # no text tells how the next one begins
            owners += [index] * len(text)
            while len(ids) > self._encoder.max_length:
                units.append(_unit(ids, learned, owners, self._encoder.max_length))
                for row in (ids, learned, owners):
                    del row[: self._encoder.max_length]
        units += [_unit(ids, learned, owners, self._encoder.max_length)] if ids else []
        return [unit for unit in units if unit.encoded.weight]


class Sequences:
    """Every sequence of some examples, encoded anew each time they are gone over; nothing of all of them is kept."""

    def __init__(self, encoder: Encoder, examples: Iterable[Example]) -> None:
        self._encoder, self._examples = encoder, examples

    def __iter__(self) -> Iterator[Encoded]:
        return (sequence for encoded in learnable(self._encoder, self._examples) for sequence in encoded.sequences)


def learnable(encoder: Encoder, examples: Iterable[Example]) -> Iterator[Encoded]:
    """The examples, encoded, without those that have nothing to learn."""
    for example in examples:
        with suppress(NothingToLearn):
            yield encoder.encode(example)


def _size(encoded: Encoded) -> int:
    """Bytes in memory, roughly."""
    return sum(BYTES_PER_TOKEN * len(row.ids) + len(row.image) + 500 for row in encoded.sequences)


def _unit(ids: list[int], learned: list[bool], owners: list[int], size: int) -> Unit:
    tokens = Tokens(tuple(ids[:size]), tuple(learned[:size]))
    return Unit(of_tokens(tokens, size), tuple(dict.fromkeys(owners[:size])))
