"""Super-NaturalInstructions as rows for the agents, and the figures over unseen tasks."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.federation.federation import BenchmarkError
from benchmarks.sni import RANKS, deal, row, tasks_of, weighted
from flexlora_client.training.data.examples import Instructed
from flexlora_shared.messages.runs import ModelSpec
from flexlora_simulation.workloads.sni_files import ONE_FILE, Instance, Task
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
    with gzip.open(folder / ONE_FILE, "wt") as file:
        file.writelines(json.dumps(task) + "\n" for task in tasks)
    return folder / ONE_FILE


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ONE_FILE).write_bytes(b"no gzip")
    with pytest.raises(BenchmarkError, match=ONE_FILE):
        tasks_of(tmp_path / ONE_FILE)


def test_every_participant_gets_a_task_of_its_own(tmp_path: Path) -> None:
    tasks = tasks_of(written(tmp_path, [fields(n, "seen" if n < 25 else "unseen") for n in range(30)]))
    people = deal(tasks, 20, 0, tmp_path / "data")
    assert [person.rank for person in people] == list(RANKS)
    assert len({person.name for person in people}) == len({person.train for person in people}) == 20
    for person in people:
        number = person.name.removeprefix("task").split("_")[0]
        assert int(number) < 25  # a seen one
        assert load(person.train, MODEL)[1] == Instructed("Do the thing number", "input 1", "answer 1", ("another",))
        assert person.heldout is not None
        assert len(load(person.heldout, MODEL)) == 2


def test_another_seed_draws_other_tasks(tmp_path: Path) -> None:
    tasks = tasks_of(written(tmp_path, [fields(n) for n in range(60)]))
    drawn = [
        [one.name for one in deal(tasks, 20, seed, tmp_path / name)] for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_too_few_seen_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="3 seen tasks for 20"):
        deal(tasks_of(written(tmp_path, [fields(n) for n in range(3)])), 20, 0, tmp_path / "data")


def test_the_first_answer_is_learned() -> None:
    task = Task("name", "Say it.", True, (), ())
    made = row(task, Instance("Now", ("yes", "no")), 80)
    assert made == {"instruction": "Say it.", "input": "Now", "output": "yes", "references": ["no"]}


def test_tasks_weigh_by_their_size() -> None:
    found = weighted([{"loss": 1.0, "rouge_l": 0.2}, {"loss": 4.0, "rouge_l": 0.8}], [30, 10])
    assert found == pytest.approx({"loss": 1.75, "rouge_l": 0.35})
