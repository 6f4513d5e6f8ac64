"""Super-NaturalInstructions as rows for the agents, and the figures over unseen tasks."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.federation.federation import BenchmarkError
from benchmarks.sni import FILE, RANKS, Instance, Task, best_rouge, deal, read_tasks, row, shortened, weighted
from flexlora_client.training.data.examples import Instructed
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import load

MODEL = ModelSpec(id="none")


def fields(number: int, role: str = "seen") -> dict[str, Any]:
    """A task as the data set writes it."""
    train = [{"input": f"input {n}", "output": [f"answer {n}", "another"]} for n in range(3)]
    return {
        "task": f"task{number}_{'long_' * 20}name",
        "role": role,
        "definition": f"Do the thing number {number}, and do it well.",
        "train": train if role == "seen" else [],
        "test": train[:2],
        "n_labels": None,
    }


def written(folder: Path, tasks: list[dict[str, Any]]) -> Path:
    """The data set's file with these tasks."""
    with gzip.open(folder / FILE, "wt") as file:
        file.writelines(json.dumps(task) + "\n" for task in tasks)
    return folder / FILE


def test_tasks_are_read_with_their_parts(tmp_path: Path) -> None:
    seen, unseen = read_tasks(written(tmp_path, [fields(1), fields(2, "unseen")]))
    assert (seen.seen, len(seen.train), len(seen.test)) == (True, 3, 2)
    assert (unseen.seen, len(unseen.train), len(unseen.test)) == (False, 0, 2)
    assert seen.train[0] == Instance("input 0", ("answer 0", "another"))


@pytest.mark.parametrize(
    "contents", [None, b"no gzip", gzip.compress(b'{"task": 1}\n', mtime=0), gzip.compress(b"x", mtime=0)[:-4]]
)
def test_another_file_is_refused(tmp_path: Path, contents: bytes | None) -> None:
    if contents is not None:
        (tmp_path / FILE).write_bytes(contents)
    with pytest.raises(BenchmarkError, match=FILE):
        read_tasks(tmp_path / FILE)


def test_every_participant_gets_a_task_of_its_own(tmp_path: Path) -> None:
    tasks = read_tasks(written(tmp_path, [fields(n, "seen" if n < 25 else "unseen") for n in range(30)]))
    people = deal(tasks, 20, 0, tmp_path / "data")
    assert [person.rank for person in people] == list(RANKS)
    assert len({person.name for person in people}) == len({person.train for person in people}) == 20
    for person in people:
        number = person.name.removeprefix("task").split("_")[0]
        assert int(number) < 25  # a seen one
        assert load(person.train, MODEL)[1] == Instructed("Do the thing number", "input 1", "answer 1")
        assert person.heldout is not None
        assert len(load(person.heldout, MODEL)) == 2


def test_another_seed_draws_other_tasks(tmp_path: Path) -> None:
    tasks = read_tasks(written(tmp_path, [fields(n) for n in range(60)]))
    drawn = [
        [one.name for one in deal(tasks, 20, seed, tmp_path / name)] for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_too_few_seen_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="3 seen tasks for 20"):
        deal(read_tasks(written(tmp_path, [fields(n) for n in range(3)])), 20, 0, tmp_path / "data")


@pytest.mark.parametrize(
    ("characters", "expected"),
    [(100, "Sort these words."), (17, "Sort these words."), (16, "Sort these"), (10, "Sort these"), (9, "Sort")],
)
def test_a_definition_is_cut_between_words(characters: int, expected: str) -> None:
    assert shortened("Sort these\n\nwords.", characters) == expected


def test_the_first_answer_is_learned() -> None:
    task = Task("name", "Say it.", True, (), ())
    assert row(task, Instance("Now", ("yes", "no")), 80) == {"instruction": "Say it.", "input": "Now", "output": "yes"}


def test_rouge_takes_the_nearest_reference() -> None:
    assert best_rouge("a black cat", ["the dog barks", "a cat"]) == pytest.approx(0.8)  # 2 of 3 and 2 of 2


def test_tasks_weigh_by_their_size() -> None:
    found = weighted([{"loss": 1.0, "rouge_l": 0.2}, {"loss": 4.0, "rouge_l": 0.8}], [30, 10])
    assert found == pytest.approx({"loss": 1.75, "rouge_l": 0.35})
