"""The tasks: reproducible files, well-formed rows, and nobody held out who was trained on."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from demo.tasks import FORMAT, MIX_PER_TASK, TASKS, Row, Task, heldout_rows, mix_rows, train_rows, write_tasks
from demo.world import make_world

MODEL = Path(__file__).parents[2] / "demo" / "model"
WORLD = make_world()


def read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def names_in(rows: list[Row]) -> set[str]:
    words = {word for row in rows for word in row.prompt.replace("?", " ").split()}
    return words & {person.name for person in WORLD.people}


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tasks(tmp_path / folder, seed)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 2 * len(TASKS) + 1
    for name in names:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert first != (tmp_path / "c" / name).read_bytes()


def test_files_hold_the_rows(tmp_path: Path) -> None:
    written, mix = write_tasks(tmp_path / "new" / "folder", 7)
    assert [files.task for files in written] == list(TASKS)
    for files in written:
        assert read(files.train) == train_rows(files.task, WORLD, 7)
        assert read(files.heldout) == heldout_rows(files.task, WORLD, 7)
    assert read(mix) == mix_rows(WORLD, 7)


def test_no_task_trains_on_anybody_held_out() -> None:
    trained = names_in([row for task in TASKS for row in train_rows(task, WORLD, 0)])
    asked = names_in([row for task in TASKS for row in heldout_rows(task, WORLD, 0)] + mix_rows(WORLD, 0))
    assert trained == {person.name for person in WORLD.known}
    assert asked == {person.name for person in WORLD.heldout}
    assert not trained & asked


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_rows_are_well_formed_and_true(task: Task) -> None:
    people = {person.name: person for person in WORLD.people}
    before, after = FORMAT.split("{clause}")
    for row in train_rows(task, WORLD, 0) + heldout_rows(task, WORLD, 0):
        assert row.prompt.startswith(before)
        assert row.prompt.endswith(after)
        assert row.completion.startswith(" ")
        assert 1 <= len(row.completion.split()) <= 8
        (name,) = names_in([row])
        assert row.completion == f" {people[name].phrase(task.kind)}."


def test_mix_holds_the_same_number_of_each_task() -> None:
    mixed = mix_rows(WORLD, 0)
    for task in TASKS:
        assert len(set(mixed) & set(heldout_rows(task, WORLD, 0))) == MIX_PER_TASK
    assert len(mixed) == MIX_PER_TASK * len(TASKS)


def test_tokenizer_has_a_token_for_every_word_asked_and_takes_any_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for task in TASKS:
        for row in train_rows(task, WORLD, 0):
            assert len(tokenizer(row.prompt).input_ids) <= len(row.prompt.split()) + 5  # <s> : ? line break :
    assert tokenizer("Where").input_ids[0] == tokenizer.bos_token_id
    for text in ("naïve café", "日本語 🙂", "\x00\t  two", "Zzyzx's <html>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
