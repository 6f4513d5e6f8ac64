"""Counts what encoding makes of examples: how long they are, how many are cut, how many have nothing to learn."""

from collections.abc import Iterable
from dataclasses import dataclass

from flexlora_client.training.data.examples import Example
from flexlora_client.training.encoding.encoded import NothingToLearn
from flexlora_client.training.encoding.encoder import Encoder


@dataclass(frozen=True)
class Lengths:
    """The distribution of examples' lengths in tokens, before anything is cut."""

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True)
class Survey:
    """Numbers of examples, but for those of tokens and turns."""

    examples: int
    empty: (
        int  # nothing to learn, no room for it within max_length, or refused by the chat template: left out of training
    )
    cut: int  # some of it is lost
    cut_tokens: int
    dropped_turns: int
    tokens: int  # that the model sees
    learned: int  # predictions that count
    lengths: Lengths | None  # None: all are empty
    reason: str = ""  # why the first of the empty ones is


def survey(encoder: Encoder, examples: Iterable[Example]) -> Survey:
    """Encode all and count. Raises: see `Encoder.encode`, but for what it says of empty ones."""
    count = empty = cut = cut_tokens = dropped = tokens = learned = 0
    lengths, reason = [], ""
    for example in examples:
        count += 1
        try:
            made = encoder.encode(example)
        except NothingToLearn as error:
            empty, reason = empty + 1, reason or str(error)
            continue
        size = sum(len(sequence.ids) for sequence in made.sequences)
        cut, cut_tokens, dropped = cut + bool(made.cut), cut_tokens + made.cut, dropped + made.dropped
        tokens, learned = tokens + size, learned + made.weight
        lengths.append(size + made.cut)
    found = _distribution(lengths) if lengths else None
    return Survey(count, empty, cut, cut_tokens, dropped, tokens, learned, found, reason)


def _distribution(lengths: list[int]) -> Lengths:
    lengths.sort()
    last = len(lengths) - 1
    return Lengths(lengths[0], lengths[last // 2], lengths[round(0.95 * last)], lengths[-1])
