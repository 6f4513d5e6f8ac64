"""Every data format in every file type, every error of a data file, and the held-out split."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Chat, Example, Labelled, Plain, Prompted, Turn
from flexlora_client.training.data.split import load, split
from flexlora_shared.messages.runs import ModelSpec

CAUSAL = ModelSpec(id="model")
CLASSES = ModelSpec(id="model", task_type="SEQ_CLS", labels=("card lost", "card late", "1"))


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


Writer = Callable[[Path, list[dict[str, Any]]], Path]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "héllo"}]
FLAT: list[tuple[ModelSpec, dict[str, Any], Example]] = [
    (CAUSAL, {"prompt": "Say, é:", "completion": ' "no"\n'}, Prompted("Say, é:", ' "no"\n')),
    (CAUSAL, {"instruction": "Add.", "input": "1 2", "output": "3"}, Prompted("Add.\n1 2\n", "3")),
    (CAUSAL, {"instruction": "Add.", "input": "", "output": "3"}, Prompted("Add.\n", "3")),
    (CAUSAL, {"instruction": "Add.", "output": "3", "text": "all of it"}, Prompted("Add.\n", "3")),
    (CAUSAL, {"text": "Once upon a time.", "id": "7"}, Plain("Once upon a time.")),
    (CLASSES, {"text": "It is late, again", "label": "card late"}, Labelled("It is late, again", 1)),
    (CLASSES, {"text": "Gone", "category": "card lost"}, Labelled("Gone", 0)),
    (CLASSES, {"text": "Gone", "label": 0}, Labelled("Gone", 0)),
    (CLASSES, {"text": "Gone", "label": "1"}, Labelled("Gone", 2)),  # a name before an index
    (CLASSES, {"text": "Gone", "label": "2"}, Labelled("Gone", 2)),
]


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
@pytest.mark.parametrize(("model", "row", "example"), FLAT)
def test_each_format_reads_from_each_file_type(
    tmp_path: Path, write: Writer, model: ModelSpec, row: dict[str, Any], example: Example
) -> None:
    assert load(write(tmp_path / "data", [row, row]), model) == (example, example)


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_conversations_read_from_the_file_types_that_have_lists(tmp_path: Path, write: Writer) -> None:
    expected = Chat((Turn("user", "hi"), Turn("assistant", "héllo")))
    assert load(write(tmp_path / "data", [{"messages": TALK}]), CAUSAL) == (expected,)


def test_rows_of_several_formats_may_share_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"text": "c"}]
    expected = (Prompted("a", "b"), Plain("c"))
    assert load(as_jsonl(tmp_path / "data", rows), CAUSAL) == expected
    columns = dict.fromkeys(["prompt", "completion", "text"])  # Parquet fills up with nulls
    assert load(as_parquet(tmp_path / "data", [columns | row for row in rows]), CAUSAL) == expected


def test_byte_order_marks_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"text": "a"}\n\n  \n{"text": "b"}', encoding="utf-8-sig")
    assert load(path, CAUSAL) == (Plain("a"), Plain("b"))
    path = tmp_path / "data.csv"
    path.write_text('text\r\n"two\r\nlines"\r\n', encoding="utf-8-sig", newline="")
    assert load(path, CAUSAL) == (Plain("two\r\nlines"),)


BAD: list[tuple[str, ModelSpec, bytes, str]] = [
    ("data.jsonl", CAUSAL, b'{"text": "a"}\n{"text": \n', r"data\.jsonl, line 2: not JSON .* one JSON object a line"),
    ("data.jsonl", CAUSAL, b'["text"]\n', r"line 1: a JSON list; write one JSON object a line"),
    ("data.jsonl", CAUSAL, b"[" * 100_000, r"line 1: not JSON"),
    ("data.jsonl", CAUSAL, b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: not UTF-8 .* save the file as UTF-8"),
    ("data.jsonl", CAUSAL, b"\n \n", r"data\.jsonl holds no examples"),
    ("data.jsonl", CAUSAL, b"", r"data\.jsonl holds no examples"),
    (
        "data.jsonl",
        CAUSAL,
        b'{"question": "a", "answer": "b"}',
        r"fields are answer, question; a language model learns",
    ),
    (
        "data.jsonl",
        CAUSAL,
        b'{"prompt": "a"}',
        r"fields are prompt; a language model learns from prompt and completion",
    ),
    ("data.jsonl", CAUSAL, b"{}", r"its fields are none"),
    ("data.jsonl", CAUSAL, b'{"prompt": "a", "completion": " "}', r"completion is empty; fill it in or delete the row"),
    ("data.jsonl", CAUSAL, b'{"prompt": 1, "completion": "b"}', r"prompt is a int; it must be a text"),
    ("data.jsonl", CAUSAL, b'{"instruction": "a", "input": [], "output": "b"}', r"input is a list; it must be a text"),
    ("data.jsonl", CAUSAL, b'{"text": ["a"]}', r"text is a list"),
    ("data.jsonl", CAUSAL, b'{"messages": []}', r"messages must be a list of \{role, content\}"),
    ("data.jsonl", CAUSAL, b'{"messages": "hi"}', r"messages must be a list"),
    ("data.jsonl", CAUSAL, b'{"messages": ["hi"]}', r"message 1 must have a role and a content"),
    ("data.jsonl", CAUSAL, b'{"messages": [{"role": "user", "content": null}]}', r"message 1 must have a role"),
    ("data.jsonl", CAUSAL, b'{"messages": [{"role": "user", "content": "a"}]}', r"no turn of the role assistant"),
    ("data.jsonl", CAUSAL, b'{"messages": [{"role": "assistant", "content": "a"}]}', r"line 1: messages begin with"),
    ("data.jsonl", CAUSAL, b'{"messages": [{"role": "assistant", "content": ""}]}', r"is the assistant's and is empty"),
    (
        "data.jsonl",
        CLASSES,
        b'{"text": "a", "label": "none"}',
        r"label 'none' is none of the run's 3 labels; use a name",
    ),
    ("data.jsonl", CLASSES, b'{"text": "a", "label": 3}', r"label '3' is none of the run's 3 labels"),
    ("data.jsonl", CLASSES, b'{"text": "a", "label": -1}', r"label '-1' is none"),
    ("data.jsonl", CLASSES, b'{"text": "a", "label": true}', r"label 'True' is none"),
    ("data.jsonl", CLASSES, b'{"text": "a", "label": 1.0}', r"label '1.0' is none"),
    ("data.jsonl", CLASSES, b'{"text": "a"}', r"fields are text; a classifier learns from text and label"),
    ("data.jsonl", CLASSES, b'{"text": "", "label": 1}', r"text is empty"),
    ("data.csv", CAUSAL, b"prompt,completion\na,b\nc\n", r"data\.csv, line 3: not one value for each column"),
    ("data.csv", CAUSAL, b"prompt,completion\na,b,c\n", r"line 2: not one value for each column .* quote texts"),
    ("data.csv", CAUSAL, b'text\n"a\n', r"after line 1: not CSV"),
    ("data.csv", CAUSAL, b"text\n\xff\n", r"not UTF-8"),
    ("data.csv", CAUSAL, b"text\n", r"data\.csv holds no examples"),
    ("data.csv", CAUSAL, b"", r"data\.csv holds no examples"),
    ("data.parquet", CAUSAL, b"PAR1", r"data\.parquet, after row 0: not Parquet"),
    ("data.txt", CAUSAL, b"text", r"the ending must be one of \.jsonl"),
]


@pytest.mark.parametrize(("name", "model", "content", "message"), BAD)
def test_bad_data_is_refused_with_its_place(
    tmp_path: Path, name: str, model: ModelSpec, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, model)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_files_that_are_not_there(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / f"none.{ending}", CAUSAL)
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / f"folder.{ending}", CAUSAL)


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "data", [{"text": "a"}, {"text": " "}])
    with pytest.raises(DataError, match=r"data\.parquet, row 2: text is empty"):
        load(path, CAUSAL)


def texts(count: int) -> list[Example]:
    return [Plain(f"text {n}") for n in range(count)]


def test_a_split_takes_about_its_fraction_and_loses_nothing() -> None:
    parts = split(texts(2000), 0.2, seed=3)
    assert 320 < len(parts.heldout) < 480
    assert sorted(map(str, parts.train + parts.heldout)) == sorted(map(str, texts(2000)))
    assert split(texts(2000), 0.2, seed=4).heldout != parts.heldout
    assert split(texts(9), 0, seed=3).heldout == ()


@given(st.lists(st.text(), max_size=30), st.lists(st.text(), max_size=30), st.integers(0, 2**31 - 1))
def test_appended_rows_move_no_example(first: list[str], more: list[str], seed: int) -> None:
    anchor = [example for n in range(40) if (example := Plain(f"anchor {n}"))]  # so that some are left to train on
    before = split([*anchor, *map(Plain, first)], 0.5, seed)
    after = split([*anchor, *map(Plain, first), *map(Plain, more)], 0.5, seed)
    assert after.train[: len(before.train)] == before.train
    assert after.heldout[: len(before.heldout)] == before.heldout
    assert not set(after.train) & set(after.heldout)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match="give a number from 0 to below 1"):
        split(texts(3), fraction, seed=0)


def test_a_split_that_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="leaves none to train on"):
        split(texts(1), 0.999999, seed=0)
