"""Reads Super-NaturalInstructions: the repository's own folders, or one gzipped file with a task a line.

The folders hold `tasks/NAME.json` (Definition, Categories, Positive Examples, Instances) and, with a name a line,
`splits/SPLIT/{train,test}_tasks.txt`. The one file, `sni_tasks.jsonl.gz`, has task, role (seen or unseen), categories,
definition, positive_examples, train and test.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora_simulation.errors import DataError

ONE_FILE = "sni_tasks.jsonl.gz"
BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError)


@dataclass(frozen=True)
class Instance:
    """One input of a task and every answer that counts as right, the first of which is learned."""

    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One task of the data set. An unseen one has test instances alone. positive: worked examples, input and answer."""

    name: str
    definition: str
    seen: bool
    train: tuple[Instance, ...]
    test: tuple[Instance, ...]
    category: str = ""
    positive: tuple[tuple[str, str], ...] = ()


def read_folder(folder: Path, split: str = "default", most: int | None = None) -> list[Task]:
    """Every task in the folder, of either form; of each part at most the first `most` instances. Raises: DataError."""
    if (folder / ONE_FILE).exists():
        return read_file(folder / ONE_FILE, most)
    parts = folder / "splits" / split
    return [
        _read_task(folder / "tasks" / f"{name}.json", seen, most)
        for part, seen in (("train", True), ("test", False))
        for name in _names(parts / f"{part}_tasks.txt")
    ]


def read_file(path: Path, most: int | None = None) -> list[Task]:
    """Every task of the one file, in its order. Raises: DataError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [_task_of_line(json.loads(line), most) for line in file]
    except BROKEN as error:
        raise DataError(f"{path} is not the gzipped JSONL of tasks: {error!r}") from error


def shortened(definition: str, characters: int) -> str:
    """The definition's first words, at most so many characters: a context of 512 tokens holds few whole ones."""
    text = " ".join(definition.split())
    return text if len(text) <= characters else text[: characters + 1].rpartition(" ")[0]


def _names(path: Path) -> Iterator[str]:
    try:
        return filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); give a folder with Super-NaturalInstructions' tasks and splits, or {ONE_FILE}"
        ) from error


def _read_task(path: Path, seen: bool, most: int | None) -> Task:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        instances = _instances(fields["Instances"], most)
        definition = fields["Definition"]
        return Task(
            path.stem,
            definition if isinstance(definition, str) else "\n".join(definition),
            seen,
            instances if seen else (),
            () if seen else instances,
            _first(fields["Categories"]),
            _worked(fields["Positive Examples"]),
        )
    except BROKEN as error:
        raise DataError(f"{path} is no task of Super-NaturalInstructions: {error!r}") from error


def _task_of_line(fields: Mapping[str, Any], most: int | None) -> Task:
    train, test = (_instances(fields[part], most) for part in ("train", "test"))
    seen, worked = fields["role"] == "seen", _worked(fields.get("positive_examples", ()))
    return Task(fields["task"], fields["definition"], seen, train, test, _first(fields.get("categories", ())), worked)


def _instances(listed: Any, most: int | None) -> tuple[Instance, ...]:
    """The first ones; one without an answer of letters teaches nothing and is left out."""
    made = (Instance(one["input"], _answers(one["output"])) for one in listed[:most])
    return tuple(instance for instance in made if instance.outputs)


def _answers(output: str | list[str]) -> tuple[str, ...]:
    """Each answer once, in their order."""
    answers = [output] if isinstance(output, str) else output
    return tuple(dict.fromkeys(answer for answer in answers if answer.strip()))


def _first(categories: Any) -> str:
    return str(next(iter([categories] if isinstance(categories, str) else categories), ""))


def _worked(examples: Any) -> tuple[tuple[str, str], ...]:
    return tuple((one["input"], answers[0]) for one in examples if (answers := _answers(one["output"])))
