"""Reads participants' parts from a Parquet file: one that an experiment wrote (`population_file`), or another program."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pydantic import TypeAdapter

from flexlora_shared.messages.clients import ClientName
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.population.partition import Part

NAME = TypeAdapter[str](ClientName)
ITEMS = b"flexlora_items"  # of the file's metadata: how many training items there were


def read_parts(path: Path, items: int) -> tuple[Part, ...]:
    """The parts in the file, the unseen ones last; of its columns participant and train are needed, heldout and seen may be.

    Raises:
        ExperimentError: it cannot be read, or its parts are none of so many items.
    """
    try:
        table = parquet.read_table(path)
        rows = table.to_pylist()
        parts = [
            Part(
                _name(row["participant"]),
                tuple(map(_index, row["train"])),
                tuple(map(_index, row.get("heldout") or ())),
                bool(row.get("seen", True)),
            )
            for row in rows
        ]
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise ExperimentError(
            f"partition.path: {path} is no Parquet file with a row for each participant: its name in the column participant, the "
            f"indices of its examples in the column train ({error!r:.200})"
        ) from error
    _check(path, parts, items, table.schema.metadata or {})
    return tuple(sorted(parts, key=lambda part: not part.seen))


def _check(path: Path, parts: list[Part], items: int, metadata: Mapping[bytes, bytes]) -> None:
    dealt = [index for part in parts for index in (*part.train, *part.heldout)]
    told = int(metadata.get(ITEMS, str(items)))
    wrong = {
        "has no participants that train": not any(part.seen for part in parts),
        "gives a name twice": len({part.name for part in parts}) < len(parts),
        "gives an example to two participants": len(set(dealt)) < len(dealt),
        "has a participant without examples to train on": not all(part.train for part in parts),
        f"is of {told} training examples, the workload has {items}": told != items,
        f"has an index outside the workload's {items} training examples": not all(
            0 <= index < items for index in dealt
        ),
    }
    for sentence, so in wrong.items():
        if so:
            raise ExperimentError(f"partition.path: {path} {sentence}")


def _name(given: Any) -> str:
    return NAME.validate_python(given)


def _index(given: Any) -> int:
    if not isinstance(given, int):
        raise TypeError(f"{given!r} is no index")
    return given
