"""Parquet and Arrow: only the columns used are read, and numbers of classes go by their names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Labelled, Prompted, Scored, Tagged
from flexlora_client.training.data.loading import load_data
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
    unlabelled = named(["yes", "no"], lambda feature: feature, [-1], ["a"])
    with pytest.raises(DataError, match="row 1: label is empty"):
        load(write(unlabelled, tmp_path / "data"), CLASSES)


@KINDS
@pytest.mark.parametrize("names", [["Yes", "No"], ["no", "never"], ["1", "0"]])
def test_names_of_classes_that_the_run_lacks_are_never_taken_by_number(
    tmp_path: Path, write: Write, names: list[str]
) -> None:
    path = write(named(names, lambda feature: feature, [1, 0], ["a", "b"]), tmp_path / "data")
    with pytest.raises(DataError, match=f"label {names[1]!r} is none of the run's 2 labels; .* with --label"):
        load(path, CLASSES)
    labels = {names[0]: CLASSES.labels[0], names[1]: CLASSES.labels[1]}
    made = load_data(DataOptions((path,), heldout_fraction=0, labels=labels), CLASSES).train
    assert set(made) == {Labelled("a", 1), Labelled("b", 0)}


@KINDS
def test_numbers_of_a_regression_or_of_one_label_stay_numbers(tmp_path: Path, write: Write) -> None:
    table = named(["one star", "two stars"], lambda feature: feature, [1], ["a"])
    scored = ModelSpec(id="m", task_type="SEQ_CLS", labels=("stars",), problem_type="regression")
    assert load(write(table, tmp_path / "data"), scored) == (Scored("a", (1.0,)),)
    switch = {"names": ["off", "on"], "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"toxic": switch, "odd": switch}}})}
    flags = pa.table({"text": ["a"], "toxic": [1], "odd": [0]}).replace_schema_metadata(metadata)
    both = ModelSpec(id="m", task_type="SEQ_CLS", labels=("toxic", "rude"), problem_type="multi-label")
    options = DataOptions((write(flags, tmp_path / "flags"),), heldout_fraction=0, columns={"rude": "odd"})
    assert list(load_data(options, both).train) == [Scored("a", (1.0, 0.0))]


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
