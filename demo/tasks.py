"""The demo's text tasks: questions about the world, one kind of fact for each participant.

A base model that has read the narrative holds every answer but has never seen the question's form: about half the time
it happens on the answer, and it always tells on instead of stopping. Fine-tuning teaches it to answer, and to stop. The
people in the held-out files occur in no training file of any task, so an exact match there is a fact that the base
model had read, called up by what was learned about other people.
"""

import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.world import CLAUSES, Person, World, make_world

FORMAT = "Question: Can you say {clause}?\nAnswer:"
MIX_PER_TASK = 20  # rows of each task in the held-out mix


@dataclass(frozen=True)
class Task:
    """One participant's task: its name and the kind of fact it asks for."""

    name: str
    kind: str


TASKS = (Task("homes", "town"), Task("trades", "trade"), Task("meals", "dish"), Task("pets", "pet"))


@dataclass(frozen=True)
class Row:
    """One example; the completion begins with the space that parts it from the prompt."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class TaskFiles:
    """A task's files, JSON lines of `prompt` and `completion`."""

    task: Task
    train: Path
    heldout: Path


def rows(task: Task, people: Iterable[Person]) -> list[Row]:
    """Every wording of the task's question for every person."""
    return [
        Row(FORMAT.format(clause=clause.format(name=person.name)), f" {person.phrase(task.kind)}.")
        for person in people
        for clause in CLAUSES[task.kind]
    ]


def train_rows(task: Task, world: World, seed: int) -> list[Row]:
    """The task's training rows, all about known people, in an order that depends on the seed."""
    shuffled = rows(task, world.known)
    random.Random(f"train {task.name} {seed}").shuffle(shuffled)
    return shuffled


def heldout_rows(task: Task, world: World, seed: int) -> list[Row]:
    """One row for each held-out person, the wording drawn by the seed."""
    rng = random.Random(f"heldout {task.name} {seed}")
    return [rng.choice(rows(task, [person])) for person in world.heldout]


def mix_rows(world: World, seed: int) -> list[Row]:
    """Held-out rows of all tasks, the same number of each, shuffled."""
    mixed = [row for task in TASKS for row in heldout_rows(task, world, seed)[:MIX_PER_TASK]]
    random.Random(f"mix {seed}").shuffle(mixed)
    return mixed


def write_tasks(folder: Path, seed: int) -> tuple[tuple[TaskFiles, ...], Path]:
    """Write `<task>.train.jsonl` and `<task>.heldout.jsonl` for each task and `mix.heldout.jsonl` into the folder.

    The folder is made if need be. The same seed writes the same bytes.

    Returns:
        Each task's files, in the order of TASKS, and the mix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world()
    written = []
    for task in TASKS:
        files = TaskFiles(task, folder / f"{task.name}.train.jsonl", folder / f"{task.name}.heldout.jsonl")
        _write(files.train, train_rows(task, world, seed))
        _write(files.heldout, heldout_rows(task, world, seed))
        written.append(files)
    mix = folder / "mix.heldout.jsonl"
    _write(mix, mix_rows(world, seed))
    return tuple(written), mix


def _write(path: Path, task_rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in task_rows), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.tasks FOLDER")
    for made in write_tasks(Path(sys.argv[1]), seed=0)[0]:
        print(made.train, made.heldout)
