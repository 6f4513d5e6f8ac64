"""What training steps are made of: examples, or plain texts joined into sequences of `max_length` tokens.

Packing leaves no padding where texts are short, and loses nothing where they are long. It is plain concatenation, as in
pretraining: each text has its tokens in front and the end-of-sequence token behind, and attention reaches into the text
before it, which not every architecture could keep from there (state-space models cannot).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flexlora_client.training.data.examples import Example, Plain
from flexlora_client.training.data.store import lengths_of
from flexlora_client.training.encoding.encoded import Encoded, NothingToLearn, Tokens, of_tokens
from flexlora_client.training.encoding.encoder import Encoder


@dataclass(frozen=True)
class Unit:
    """What is trained on at once: an example, or a sequence of several. `sources`: the examples in it, by index."""

    encoded: Encoded
    sources: tuple[int, ...]


class Units:
    """The units of a participant's examples; those with nothing to learn are left out."""

    def __init__(self, encoder: Encoder, examples: Sequence[Example]) -> None:
        self._encoder, self._examples = encoder, examples
        self._packed = _packed(encoder, examples) if encoder.packing else None

    @property
    def lengths(self) -> list[int]:
        """How long each is, for the plan of the steps: in characters, packed ones in tokens."""
        if self._packed is None:
            return lengths_of(self._examples)
        return [len(unit.encoded.ids) for unit in self._packed]

    def encoded(self, indices: Iterable[int]) -> dict[int, Unit]:
        """The units of these indices that have something to learn."""
        if self._packed is not None:
            return {index: self._packed[index] for index in indices}
        made = ((index, _encoded(self._encoder, self._examples[index])) for index in indices)
        return {index: Unit(encoded, (index,)) for index, encoded in made if encoded is not None}


def learnable(encoder: Encoder, examples: Iterable[Example]) -> Iterator[Encoded]:
    """The examples, encoded, without those that have nothing to learn."""
    made = (_encoded(encoder, example) for example in examples)
    return (encoded for encoded in made if encoded is not None)


def _encoded(encoder: Encoder, example: Example) -> Encoded | None:
    try:
        return encoder.encode(example)
    except NothingToLearn:
        return None


def _packed(encoder: Encoder, examples: Sequence[Example]) -> list[Unit]:
    """Plain texts joined and cut every `max_length` tokens; other examples by themselves."""
    units: list[Unit] = []
    ids: list[int] = []
    learned: list[bool] = []
    owners: list[int] = []
    for index, example in enumerate(examples):
        if not isinstance(example, Plain):
            encoded = _encoded(encoder, example)
            units += [Unit(encoded, (index,))] if encoded is not None else []
            continue
        text = encoder.plain(example)
        ids += text
        learned += [False] + [True] * (len(text) - 1)  # no text tells how the next one begins
        owners += [index] * len(text)
        while len(ids) > encoder.max_length:
            units.append(_unit(ids, learned, owners, encoder.max_length))
            for row in (ids, learned, owners):
                del row[: encoder.max_length]
    units += [_unit(ids, learned, owners, encoder.max_length)] if ids else []
    return [unit for unit in units if unit.encoded.weight]


def _unit(ids: list[int], learned: list[bool], owners: list[int], size: int) -> Unit:
    tokens = Tokens(tuple(ids[:size]), tuple(learned[:size]))
    return Unit(of_tokens(tokens, size), tuple(dict.fromkeys(owners[:size])))
