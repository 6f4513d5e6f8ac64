"""Reads token ids and targets as texts, what is learned in brackets."""

from itertools import groupby

from flexlora_client.training.data.examples import Example
from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoded, Encoder


def marked(encoder: Encoder, example: Example) -> list[str]:
    """Each sequence of the example as text, what is learned in double brackets; of a language model."""
    return [marked_sequence(encoder, sequence) for sequence in encoder.encode(example).sequences]


def marked_sequence(encoder: Encoder, encoded: Encoded) -> str:
    """One sequence as `marked` gives it; checks that ids and targets agree."""
    assert all(target in (token, IGNORE_INDEX) for token, target in zip(encoded.ids, encoded.targets, strict=True))
    assert sum(target != IGNORE_INDEX for target in encoded.targets[1:]) == encoded.weight
    text = ""
    for learned, run in groupby(
        zip(encoded.ids, encoded.targets, strict=True), key=lambda pair: pair[1] != IGNORE_INDEX
    ):
        piece = str(encoder.tokenizer.decode([token for token, _ in run]))
        text += f"[[{piece}]]" if learned else piece
    return text
