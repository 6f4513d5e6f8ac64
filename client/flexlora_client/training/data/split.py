"""The participant's data: reads examples from a file and splits them into training and held-out parts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.formats import RowError, example_of
from flexlora_client.training.data.rows import read_rows
from flexlora_shared.messages.runs import ModelSpec


@dataclass(frozen=True)
class Split:
    """The two parts; either may be empty."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]


def load(path: Path, model: ModelSpec) -> tuple[Example, ...]:
    """Every example of a JSONL, CSV or Parquet file, in its order; `formats` documents the fields.

    Raises:
        DataError: the file cannot be read or is empty, or a row (named by its line) is no example for the run's task.
    """
    examples = []
    for row in read_rows(path):
        try:
            examples.append(example_of(row.fields, model))
        except RowError as error:
            raise DataError(f"{row.place}: {error}") from None
    if not examples:
        raise DataError(f"{path} holds no examples; give a file with at least one.")
    return tuple(examples)


def split(examples: Sequence[Example], fraction: float, seed: int) -> Split:
    """Hold out about `fraction` (0 to below 1) of the examples, the same ones on every call.

    Each example's own content and the seed decide on its side: appending rows moves no example from one part to the
    other, and two equal rows never stand on different sides.

    Raises:
        DataError: the fraction is out of range, or nothing is left to train on.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; give a number from 0 to below 1.")
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[_position(example, seed) < fraction].append(example)
    if not parts[0]:
        raise DataError(
            f"holding out {fraction} of {len(examples)} examples leaves none to train on; "
            "add examples, hold out less, or give a held-out file."
        )
    return Split(tuple(parts[0]), tuple(parts[1]))


def _position(example: Example, seed: int) -> float:
    """The example's place in [0, 1): its dataclass representation names every field, so equal means equal content."""
    digest = hashlib.sha256(f"{seed}\0{example!r}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
