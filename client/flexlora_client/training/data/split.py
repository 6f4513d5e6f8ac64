"""Splits examples into training and held-out parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.reading import Reading
from flexlora_client.training.data.store import key_of
from flexlora_shared.messages.runs import ModelSpec


@dataclass(frozen=True)
class Split:
    """The two parts; either may be empty."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]


def load(path: Path, model: ModelSpec) -> tuple[Example, ...]:
    """Every example of a file or folder, in its order, in memory; `loading.load_data` is for data of any size.

    Raises:
        DataError: it cannot be read or is empty, or a row (named by its line) is no example for the run's task.
    """
    return tuple(Reading(DataOptions((path,)), model).examples([path]))


def split(examples: Sequence[Example], fraction: float, seed: int) -> Split:
    """Hold out about `fraction` (0 to below 1) of the examples, the same ones on every call.

    Each example's own content and the seed decide on its side: appending rows moves no example from one part to the
    other, and two equal rows never stand on different sides.

    Raises:
        DataError: the fraction is out of range, or nothing is left to train on.
    """
    check_fraction(fraction)
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[key_of(example, seed) / 2**64 < fraction].append(example)
    if not parts[0]:
        raise nothing_left(fraction, len(examples))
    return Split(tuple(parts[0]), tuple(parts[1]))


def check_fraction(fraction: float) -> None:
    """Raises: DataError, where it is not from 0 to below 1."""
    if not 0 <= fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; give a number from 0 to below 1.")


def nothing_left(fraction: float, examples: int) -> DataError:
    """The error that a split leaves nothing to train on."""
    return DataError(
        f"holding out {fraction} of {examples} examples leaves none to train on; "
        "add examples, hold out less, or give a held-out file."
    )
