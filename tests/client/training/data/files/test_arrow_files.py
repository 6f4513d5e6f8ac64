"""Parquet and Arrow: only the columns used are read, and numbers of classes go by their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Labelled, Prompted, Tagged
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import load

CAUSAL = ModelSpec(id="model")
CLASSES = ModelSpec(id="model", task_type="SEQ_CLS", labels=("no", "yes"))
TAGS = ModelSpec(id="model", task_type="TOKEN_CLS", labels=("PER", "O"))
NANOSECONDS = pa.array([1_000_000_000_000_000_001], pa.timestamp("ns"))
LONG_AGO = pa.array([-(2**62)], pa.timestamp("us"))


def to_parquet(table: Any, path: Path) -> Path:
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def to_file(table: Any, path: Path) -> Path:
    with pa.ipc.new_file(str(path.with_suffix(".arrow")), table.schema) as writer:
        writer.write_table(table)
    return path.with_suffix(".arrow")


def to_stream(table: Any, path: Path) -> Path:
    with pa.ipc.new_stream(str(path.with_suffix(".arrow")), table.schema) as writer:
        writer.write_table(table)
    return path.with_suffix(".arrow")


KINDS = pytest.mark.parametrize("write", [to_parquet, to_file, to_stream])
Write = Callable[[Any, Path], Path]


@KINDS
@pytest.mark.parametrize("when", [NANOSECONDS, LONG_AGO])
def test_columns_that_are_not_used_are_not_read(tmp_path: Path, write: Write, when: Any) -> None:
    table = pa.table({"when": when, "prompt": ["a"], "completion": ["b"], "last": when})
    assert load(write(table, tmp_path / "data"), CAUSAL) == (Prompted("a", "b"),)


@KINDS
def test_a_column_that_is_used_must_have_a_form_in_python(tmp_path: Path, write: Write) -> None:
    table = pa.table({"prompt": LONG_AGO, "completion": ["b"]})
    with pytest.raises(DataError, match=r"rows 1 to 1: a value has no form in Python .*; convert its column to text"):
        load(write(table, tmp_path / "data"), CAUSAL)


@KINDS
def test_two_columns_of_one_name(tmp_path: Path, write: Write) -> None:
    table = pa.Table.from_arrays([pa.array([text]) for text in "abc"], ["prompt", "completion", "completion"])
    with pytest.raises(DataError, match="has two columns named completion; delete or rename one"):
        load(write(table, tmp_path / "data"), CAUSAL)
    unused = pa.Table.from_arrays([pa.array([text]) for text in "abcd"], ["prompt", "completion", "id", "id"])
    assert load(write(unused, tmp_path / "data"), CAUSAL) == (Prompted("a", "b"),)


@KINDS
def test_no_column_is_known(tmp_path: Path, write: Write) -> None:
    with pytest.raises(
        DataError, match=r"its columns are 'a', 'b'; a language model learns from .* --column text=body"
    ):
        load(write(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "data"), CAUSAL)


def named(names: list[str], feature: Callable[[dict[str, Any]], Any], values: Any, texts: Any) -> Any:
    """A table with the class names that the library `datasets` writes."""
    column, text = ("label", "text") if isinstance(texts[0], str) else ("tags", "tokens")
    features = {column: feature({"names": names, "_type": "ClassLabel"}), text: {"dtype": "string", "_type": "Value"}}
    table = pa.table({column: values, text: texts})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@KINDS
def test_numbers_of_classes_go_by_their_names(tmp_path: Path, write: Write) -> None:
    table = named(["yes", "no"], lambda feature: feature, [0, 1], ["a", "b"])
    assert load(write(table, tmp_path / "data"), CLASSES) == (Labelled("a", 1), Labelled("b", 0))
    others = named(["maybe", "never"], lambda feature: feature, [0, 1], ["a", "b"])  # the run knows none of them
    assert load(write(others, tmp_path / "data"), CLASSES) == (Labelled("a", 0), Labelled("b", 1))
    unlabelled = named(["yes", "no"], lambda feature: feature, [-1], ["a"])
    with pytest.raises(DataError, match="row 1: label is empty"):
        load(write(unlabelled, tmp_path / "data"), CLASSES)


@KINDS
@pytest.mark.parametrize("feature", [lambda label: {"feature": label, "_type": "List"}, lambda label: [label]])
def test_numbers_of_tags_go_by_their_names(tmp_path: Path, write: Write, feature: Callable[[Any], Any]) -> None:
    table = named(["O", "PER"], feature, [[1, 0]], [["Ada", "is"]])
    assert load(write(table, tmp_path / "data"), TAGS) == (Tagged(("Ada", "is"), (0, 1)),)


@KINDS
def test_texts_of_other_types(tmp_path: Path, write: Write) -> None:
    texts = pa.array(["a", "b", "a"])
    for column in (texts.dictionary_encode(), texts.cast(pa.large_string()), texts.cast(pa.string_view())):
        table = pa.table({"prompt": column, "completion": column})
        assert load(write(table, tmp_path / "data"), CAUSAL)[1] == Prompted("b", "b")
