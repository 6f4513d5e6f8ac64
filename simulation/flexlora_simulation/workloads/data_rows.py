"""The rows of a data set's files: found by name in a folder, read by the agent's own readers."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flexlora_client import errors as client_errors
from flexlora_client.training.data.files.folders import ending
from flexlora_client.training.data.files.sources import READERS, read_rows
from flexlora_simulation.errors import DataError

T = TypeVar("T")
SHARD = re.compile(r"-\d+-of-\d+$")  # as in train-00000-of-00002.parquet


def files_of(folder: Path, *names: str) -> list[Path]:
    """The data files in the folder, in order, of the first of these names that has some: `train` is train.jsonl or train.json.gz,
    or the pieces train-00000-of-00002.parquet and so on.

    Raises:
        DataError: there is none, or a file beside another of the same rows.
    """
    there = [path for path in sorted(folder.iterdir()) if ending(path) in READERS] if folder.is_dir() else []
    for name in names:
        found = [path for path in there if SHARD.sub("", _stem(path)) == name]
        if len(found) > 1 and (whole := [path for path in found if _stem(path) == name]):
            raise DataError(f"{folder} has {name} more than once, as {whole[0].name} too; keep one copy")
        if found:
            return found
    kinds = ", ".join(READERS)
    raise DataError(f"{folder} has no file {' or '.join(names)} ({kinds}); put the data set's own files there")


def read(files: list[Path], make: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """What `make` makes of each row. Raises: DataError, which names the row that is none of the data set."""
    made = []
    try:
        for row in (row for file in files for row in read_rows(file)):
            try:
                made.append(make(row.fields))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{row.place}: no row of this data set ({error!r}); give its own files") from error
    except client_errors.DataError as error:
        raise DataError(str(error)) from error
    return made


def _stem(path: Path) -> str:
    return path.name[: -len(ending(path))]
