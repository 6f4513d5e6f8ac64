"""Super-NaturalInstructions in both of its forms."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.training.data.examples import Instructed
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import Partition, WorkloadOptions
from flexlora_simulation.population.partition import deal
from flexlora_simulation.workloads.sni import Sni
from flexlora_simulation.workloads.sni_files import ONE_FILE, Instance, read_file, read_folder, shortened
from tests.support.text_data_sets import write_sni


def opened(folder: Path, **options: object) -> Sni:
    return Sni(WorkloadOptions.model_validate({"name": "sni", "data": str(folder), "model": "m", "options": options}))


def line(number: int, role: str = "seen") -> dict[str, Any]:
    """A task of the one file."""
    instances = [{"input": f"input {n}", "output": [f"answer {n}", "another"]} for n in range(3)]
    return {
        "task": f"task{number}",
        "role": role,
        "definition": f"Do the thing number {number}.",
        "categories": ["Doing"],
        "positive_examples": [{"input": "x", "output": "y"}],
        "train": instances if role == "seen" else [],
        "test": instances[:2],
    }


def one_file(folder: Path, *lines: dict[str, Any]) -> Path:
    with gzip.open(folder / ONE_FILE, "wt") as file:
        file.writelines(json.dumps(fields) + "\n" for fields in lines)
    return folder


def test_the_repositorys_folders(tmp_path: Path) -> None:
    seen, other, unseen = read_folder(write_sni(tmp_path), most=3)
    assert (seen.name, seen.definition, seen.category) == ("task000_say_0", "Say the number 0 in words.", "Counting")
    assert (seen.seen, other.seen, unseen.seen) == (True, True, False)
    assert (len(seen.train), len(seen.test), len(unseen.train), len(unseen.test)) == (3, 0, 0, 3)
    assert seen.train[1] == Instance("input 1", ("0", "number 0"))  # each answer once
    assert seen.positive == (("now", "0"),)


def test_an_instance_without_an_answer_is_left_out(tmp_path: Path) -> None:
    fields = line(1)
    fields["train"] = [{"input": "x", "output": [" "]}, {"input": "y", "output": ["", "z"]}]
    (task,) = read_file(one_file(tmp_path, fields) / ONE_FILE)
    assert task.train == (Instance("y", ("z",)),)


def test_the_one_file(tmp_path: Path) -> None:
    corpus = opened(one_file(tmp_path, line(1), line(2, "unseen"))).corpus()
    assert [(item.group, item.unseen) for item in corpus.train] == [("task1", False)] * 3 + [("task2", True)] * 2
    assert [(item.group, item.label) for item in corpus.test] == [("task1", "Doing")] * 2
    assert corpus.train[0].example == Instructed("Do the thing number 1.", "input 0", "answer 0", ("another",))


def test_options_of_the_prompt(tmp_path: Path) -> None:
    item = opened(write_sni(tmp_path), definition=12, positive_examples=2, instances=1).corpus().train[0]
    assert item.example == Instructed("Say the\n\nInput: now\nOutput: 0\n", "input 0", "0", ("number 0",))


def test_the_test_splits_tasks_are_unseen_participants_however_the_rest_is_dealt(tmp_path: Path) -> None:
    items = opened(write_sni(tmp_path, seen=3, unseen=2)).corpus().train
    for partition in (Partition(by="group"), Partition(by="uniform", participants=4)):
        parts = deal(items, partition, 0)
        unseen = [part for part in parts if not part.seen]
        assert [part.name for part in unseen] == ["task003_say_3", "task004_say_4"]
        assert all({items[index].group for index in part.train} == {part.name} for part in unseen)
        dealt = sorted(index for part in parts for index in part.train)
        assert dealt == list(range(len(items)))
        assert not any(items[index].unseen for part in parts if part.seen for index in part.train)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "splits/default/test_tasks.txt").unlink(), r"test_tasks\.txt cannot be read"),
        (lambda folder: (folder / "tasks/task001_say_1.json").unlink(), r"task001_say_1\.json is no task"),
        (lambda folder: (folder / "tasks/task001_say_1.json").write_text("{}"), r"is no task .*KeyError"),
    ],
)
def test_a_folder_with_something_missing_is_refused(tmp_path: Path, break_it: Any, reason: str) -> None:
    break_it(write_sni(tmp_path))
    with pytest.raises(DataError, match=reason):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "contents", [None, b"no gzip", gzip.compress(b'{"task": 1}\n', mtime=0), gzip.compress(b"x", mtime=0)[:-4]]
)
def test_another_file_is_refused(tmp_path: Path, contents: bytes | None) -> None:
    if contents is not None:
        (tmp_path / ONE_FILE).write_bytes(contents)
    with pytest.raises(DataError, match=ONE_FILE):
        read_file(tmp_path / ONE_FILE)


def test_an_unknown_split_and_a_wrong_option_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="xlingual"):
        opened(write_sni(tmp_path), split="xlingual").corpus()
    with pytest.raises(ExperimentError, match=r"workload\.options\.instances"):
        opened(tmp_path, instances=0)
    with pytest.raises(ExperimentError, match="sni needs data"):
        Sni(WorkloadOptions(name="sni", data="data"))


@pytest.mark.parametrize(
    ("characters", "expected"),
    [(100, "Sort these words."), (17, "Sort these words."), (16, "Sort these"), (10, "Sort these"), (9, "Sort")],
)
def test_a_definition_is_cut_between_words(characters: int, expected: str) -> None:
    assert shortened("Sort these\n\nwords.", characters) == expected
