"""An example as a person reads it: what the model sees of it, piece by piece, learned or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby

from PIL import Image

from flexlora_client.training.data.examples import Example, Labelled, Pictured, Scored, Tagged
from flexlora_client.training.encoding.encoded import IGNORE_INDEX, Encoded, NothingToLearn
from flexlora_client.training.encoding.encoder import Encoder


@dataclass(frozen=True)
class Piece:
    """A part of what the model sees, as text."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Row:
    """One sequence: its token ids, its targets (see `Encoded`), and both as text."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    values: tuple[float, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Shown:
    """An example to show, with a line about it; without rows where nothing of it is trained on."""

    summary: str
    weight: int
    cut: int
    dropped_turns: int
    rows: tuple[Row, ...]


def show(encoder: Encoder, example: Example, labels: Sequence[str]) -> Shown:
    """What becomes of the example; `labels` are the run's. Raises: see `Encoder.encode`, but for what has nothing to learn."""
    try:
        encoded = encoder.encode(example)
    except NothingToLearn as error:
        return Shown(f"left out: {error}", 0, 0, 0, ())
    rows = []
    for sequence in encoded.sequences:
        pieces = tuple(_pieces(encoder, example, sequence, labels))
        rows.append(Row(sequence.ids, sequence.targets, sequence.values, pieces))
    return Shown(_summary(encoded), encoded.weight, encoded.cut, encoded.dropped, tuple(rows))


def _summary(encoded: Encoded) -> str:
    tokens = sum(len(sequence.ids) for sequence in encoded.sequences)
    parts = [f"{tokens} tokens, {encoded.weight} to learn" if tokens else "1 to learn"]
    if encoded.further:
        parts.append(f"{len(encoded.sequences)} sequences")
    if encoded.cut:
        parts.append(f"{encoded.cut} tokens cut")
    if encoded.dropped:
        parts.append(f"{encoded.dropped} early turns dropped")
    return ", ".join(parts)


def _pieces(encoder: Encoder, example: Example, encoded: Encoded, labels: Sequence[str]) -> Iterator[Piece]:
    if isinstance(example, Pictured):
        with Image.open(BytesIO(example.image)) as image:
            yield Piece(f"{image.format} image of {image.width} x {image.height} ", False)
        yield Piece(labels[example.label], True)
    elif isinstance(example, Labelled | Scored):
        yield Piece(_text(encoder, encoded.ids) + " ", False)
        yield Piece(_target(example, labels), True)
    elif isinstance(example, Tagged):
        for token, tag in zip(encoded.ids, encoded.targets, strict=True):
            yield Piece(_text(encoder, (token,)), False)
            if tag != IGNORE_INDEX:
                yield Piece(labels[tag], True)
    elif encoder.seq2seq:
        yield Piece(_text(encoder, encoded.ids) + "\n", False)
        yield Piece(_text(encoder, encoded.targets), True)
    else:
        pairs = zip(encoded.ids, encoded.targets, strict=True)
        for learned, run in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
            yield Piece(_text(encoder, tuple(token for token, _ in run)), learned)


def _text(encoder: Encoder, ids: tuple[int, ...]) -> str:
    return str(encoder.tokenizer.decode(list(ids)))


def _target(example: Labelled | Scored, labels: Sequence[str]) -> str:
    if isinstance(example, Labelled):
        return labels[example.label]
    names = labels or ("",) * len(example.values)
    return ", ".join(f"{name} {value:g}".strip() for name, value in zip(names, example.values, strict=False))
