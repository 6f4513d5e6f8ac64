"""Every form of row for every task, from every kind of file, against examples written by hand; and rows that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import (
    Chat,
    Choice,
    Example,
    Instructed,
    Labelled,
    Plain,
    Prompted,
    Scored,
    Tagged,
    Turn,
)
from flexlora_client.training.data.formats import RowReader
from flexlora_client.training.data.rows import RowError
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import FLAT, NESTED, Writer, as_jsonl, load

CAUSAL = ModelSpec(id="model")
SEQ2SEQ = ModelSpec(id="model", task_type="SEQ_2_SEQ_LM")
CLASSES = ModelSpec(id="model", task_type="SEQ_CLS", labels=("card lost", "card late", "1"))
TWO = ModelSpec(id="model", task_type="SEQ_CLS", labels=("bad", "good"))
BOOLS = ModelSpec(id="model", task_type="SEQ_CLS", labels=("True", "False"))
MULTI = ModelSpec(id="model", task_type="SEQ_CLS", labels=("rude", "loud", "sad"), problem_type="multi-label")
SCORE = ModelSpec(id="model", task_type="SEQ_CLS", labels=("grade",), problem_type="regression")
SCORES = ModelSpec(id="model", task_type="SEQ_CLS", labels=("style", "sense"), problem_type="regression")
TAGS = ModelSpec(id="model", task_type="TOKEN_CLS", labels=("O", "PER", "LOC"))

ROWS: list[tuple[ModelSpec, dict[str, Any], Example]] = [
    (CAUSAL, {"prompt": "Say, é:", "completion": ' "no"\n'}, Prompted("Say, é:", ' "no"\n')),
    (CAUSAL, {"instruction": "Add.", "input": "1 2", "output": "3"}, Instructed("Add.", "1 2", "3")),
    (CAUSAL, {"instruction": "Add.", "input": "", "output": "3"}, Instructed("Add.", "", "3")),
    (CAUSAL, {"instruction": "Add.", "output": "3", "text": "all of it"}, Instructed("Add.", "", "3")),
    (CAUSAL, {"text": "Once upon a time.", "id": "7"}, Plain("Once upon a time.")),
    (SEQ2SEQ, {"source": "two", "target": "deux"}, Prompted("two", "deux")),
    (SEQ2SEQ, {"text": "long", "summary": "short"}, Prompted("long", "short")),
    (SEQ2SEQ, {"input": "a", "output": "b"}, Prompted("a", "b")),
    (SEQ2SEQ, {"instruction": "Add.", "input": "1", "output": "b"}, Instructed("Add.", "1", "b")),
    (CLASSES, {"text": "It is late, again", "label": "card late"}, Labelled("It is late, again", 1)),
    (CLASSES, {"text": "Gone", "category": "card lost"}, Labelled("Gone", 0)),
    (CLASSES, {"text": "Gone", "label": 0}, Labelled("Gone", 0)),
    (CLASSES, {"text": "Gone", "label": "1"}, Labelled("Gone", 2)),  # a name before an index
    (CLASSES, {"text": "Gone", "label": "2"}, Labelled("Gone", 2)),
    (TWO, {"text": "Gone", "label": True}, Labelled("Gone", 1)),
    (TWO, {"text": "Gone", "label": False}, Labelled("Gone", 0)),
    (BOOLS, {"text": "Gone", "label": True}, Labelled("Gone", 0)),
    (TWO, {"sentence": "Gone", "label": "bad"}, Labelled("Gone", 0)),
    (TWO, {"sentence1": "a", "sentence2": "b", "label": 1}, Labelled("a", 1, "b")),
    (TWO, {"premise": "a", "hypothesis": "b", "label": 1}, Labelled("a", 1, "b")),
    (TWO, {"text": "a", "text_pair": "b", "label": 1}, Labelled("a", 1, "b")),
    (MULTI, {"text": "a", "rude": 1, "loud": 0, "sad": 1}, Scored("a", (1, 0, 1))),
    (MULTI, {"text": "a", "label": "loud"}, Scored("a", (0, 1, 0))),
    (SCORE, {"text": "a", "label": 2.5}, Scored("a", (2.5,))),
    (SCORE, {"sentence1": "a", "sentence2": "b", "score": -1}, Scored("a", (-1,), "b")),
    (SCORES, {"text": "a", "style": 1.5, "sense": 2}, Scored("a", (1.5, 2))),
]


@pytest.mark.parametrize("write", FLAT)
def test_each_form_reads_from_each_kind_of_file(tmp_path: Path, write: Writer) -> None:
    for model, row, example in ROWS:
        assert load(write(tmp_path / "data", [row, row, row]), model) == (example, example, example), row


ARC = {"text": ["red", "blue"], "label": ["1", "2"]}
LISTS: list[tuple[ModelSpec, dict[str, Any], Example]] = [
    (CAUSAL, {"instruction": "Add.", "output": "3", "references": ["three"]}, Instructed("Add.", "", "3", ("three",))),
    (CAUSAL, {"prompt": "1 + 2", "completion": "3", "references": []}, Prompted("1 + 2", "3")),
    (SEQ2SEQ, {"source": "two", "target": "deux", "references": ["2", "II"]}, Prompted("two", "deux", ("2", "II"))),
    (CAUSAL, {"question": "Sky?", "choices": ["red", "blue"], "answer": 1}, Choice("Sky?", ("red", "blue"), 1)),
    (CAUSAL, {"prompt": "Sky?", "choices": ["red", "blue"], "answer": "B"}, Choice("Sky?", ("red", "blue"), 1)),
    (CAUSAL, {"prompt": "Sky?", "choices": ["red", "blue"], "answer": "blue"}, Choice("Sky?", ("red", "blue"), 1)),
    (CAUSAL, {"question": "Sky?", "choices": ARC, "answerKey": "2"}, Choice("Sky?", ("red", "blue"), 1)),
    (CAUSAL, {"question": "?", "choices": ["2", "1"], "answer": "1"}, Choice("?", ("2", "1"), 1)),
    (MULTI, {"text": "a", "labels": ["rude", "sad"]}, Scored("a", (1, 0, 1))),
    (MULTI, {"text": "a", "labels": [0, 2]}, Scored("a", (1, 0, 1))),
    (MULTI, {"text": "a", "labels": [0, 1, 1]}, Scored("a", (0, 1, 1))),
    (SCORES, {"text": "a", "labels": [0.5, 3.0]}, Scored("a", (0.5, 3))),
    (TAGS, {"tokens": ["Ada", "is", "in", "Rome"], "ner_tags": [1, 0, 0, 2]}, Tagged(("Ada", "is", "in", "Rome"), (1, 0, 0, 2))),
    (TAGS, {"words": ["Ada", "is"], "tags": ["PER", "O"]}, Tagged(("Ada", "is"), (1, 0))),
]  # fmt: skip


@pytest.mark.parametrize("write", NESTED)
def test_forms_with_lists_read_from_files_that_have_lists(tmp_path: Path, write: Writer) -> None:
    for model, row, example in LISTS:
        assert load(write(tmp_path / "data", [row, row, row]), model) == (example, example, example), row


@pytest.mark.parametrize("write", FLAT)
def test_lists_of_flat_files_are_json(tmp_path: Path, write: Writer) -> None:
    row = {"tokens": json.dumps(["Ada", "is"]), "tags": json.dumps(["PER", "O"])}
    assert load(write(tmp_path / "data", [row]), TAGS) == (Tagged(("Ada", "is"), (1, 0)),)


def test_an_empty_list_of_labels_is_no_label(tmp_path: Path) -> None:
    assert load(as_jsonl(tmp_path / "data", [{"text": "a", "labels": []}]), MULTI) == (Scored("a", (0, 0, 0)),)


@pytest.mark.parametrize("write", NESTED)
def test_rows_of_several_forms_may_share_a_file(tmp_path: Path, write: Writer) -> None:
    columns = dict.fromkeys(["prompt", "completion", "text"])
    rows: list[dict[str, Any]] = [{"prompt": "a", "completion": "b"}, {"text": "c"}]
    rows = [columns | row for row in rows]
    assert load(write(tmp_path / "data", rows), CAUSAL) == (Prompted("a", "b"), Plain("c"))


def test_empty_values_of_csv_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion,text\na,b,\n,,c\n")
    assert load(path, CAUSAL) == (Prompted("a", "b"), Plain("c"))


def test_the_side_of_an_instruction_is_that_of_releases_before() -> None:
    """They made a `Prompted` of it, and the split goes by its representation."""
    assert repr(Instructed("Add.", "1 2", "3")) == "Prompted(prompt='Add.\\n1 2\\n', completion='3')"
    assert repr(Instructed("Add.", "", "3")) == "Prompted(prompt='Add.\\n', completion='3')"
    assert repr(Labelled("a", 1)) == "Labelled(text='a', label=1)"
    assert repr(Chat((Turn("user", "a"),))) == "Chat(turns=(Turn(role='user', content='a'),))"


BAD: list[tuple[ModelSpec, dict[str, Any], str]] = [
    (CAUSAL, {"question": "a", "answer": "b"}, r"fields are answer, question; a language model learns from prompt"),
    (CAUSAL, {"prompt": "a"}, r"fields are prompt; a language model learns from prompt and completion"),
    (CAUSAL, {}, r"its fields are none"),
    (CAUSAL, {"prompt": "a", "completion": " "}, r"completion is empty; fill it in or delete the row"),
    (CAUSAL, {"prompt": "a", "completion": None}, r"completion is empty; fill it in or delete the row"),
    (CAUSAL, {"prompt": 1, "completion": "b"}, r"prompt is a int; it must be a text"),
    (CAUSAL, {"instruction": "a", "input": [], "output": "b"}, r"input is a list; it must be a text"),
    (CAUSAL, {"prompt": "a", "completion": "b", "references": "c"}, r"references is a str; it must be a list"),
    (CAUSAL, {"prompt": "a", "completion": "b", "references": ["c", " "]}, r"references must be a list of texts"),
    (CAUSAL, {"prompt": "a", "completion": "b", "references": [1]}, r"references must be a list of texts"),
    (CAUSAL, {"text": ["a"]}, r"text is a list"),
    (CAUSAL, {"text": "a \ud83d"}, r"text holds half a character"),
    (CAUSAL, {"prompt": "a", "choices": ["b"], "answer": 0}, r"choices must be a list of at least two texts"),
    (CAUSAL, {"prompt": "a", "choices": ["b", 1], "answer": 0}, r"choices must be a list of at least two texts"),
    (CAUSAL, {"prompt": "a", "choices": ["b", "c"], "answer": 2}, r"answer '2' is none of its 2 choices"),
    (CAUSAL, {"prompt": "a", "choices": ["b", "c"], "answer": True}, r"answer 'True' is none of its 2 choices"),
    (SEQ2SEQ, {"text": "a"}, r"fields are text; a sequence-to-sequence model learns from prompt and completion"),
    (CLASSES, {"text": "a", "label": "none"}, r"label 'none' is none of the run's 3 labels; use a name \(card lost"),
    (CLASSES, {"text": "a", "label": 3}, r"label '3' is none of the run's 3 labels"),
    (CLASSES, {"text": "a", "label": -1}, r"label '-1' is none"),
    (CLASSES, {"text": "a", "label": True}, r"label 'True' is none"),
    (CLASSES, {"text": "a", "label": 1.0}, r"label '1.0' is none"),
    (CLASSES, {"text": "a", "label": None}, r"label is empty; fill it in"),
    (CLASSES, {"text": "a"}, r"fields are text; a classifier learns from text and label"),
    (CLASSES, {"text": "", "label": 1}, r"text is empty"),
    (CLASSES, {"sentence1": "a", "label": 1}, r"its fields are label, sentence1"),
    (MULTI, {"text": "a", "labels": ["rude", "glad"]}, r"label 'glad' is none"),
    (MULTI, {"text": "a", "rude": 1, "loud": 0, "sad": 2}, r"each must be 0 or 1"),
    (MULTI, {"text": "a", "labels": "[rude"}, r"labels is no list in JSON"),
    (SCORE, {"text": "a", "label": "high"}, r"grade is 'high'; it must be a number"),
    (SCORE, {"text": "a", "label": float("nan")}, r"grade is 'nan'; it must be a number"),
    (SCORES, {"text": "a", "labels": [1.0]}, r"1 numbers for the run's 2 labels"),
    (TAGS, {"tokens": ["a", "b"], "tags": [0]}, r"2 tokens and 1 tags; give one tag for each word"),
    (TAGS, {"tokens": [], "tags": []}, r"0 tokens and 0 tags"),
    (TAGS, {"tokens": ["a", None], "tags": [0, 0]}, r"tokens must be a list of texts"),
    (TAGS, {"tokens": "a b", "tags": [0, 0]}, r"tokens is a str; it must be a list"),
    (TAGS, {"tokens": ["a"], "tags": ["ORG"]}, r"label 'ORG' is none of the run's 3 labels"),
]


@pytest.mark.parametrize(("model", "row", "message"), BAD)
def test_a_row_that_is_no_example_is_refused_with_its_place(
    tmp_path: Path, model: ModelSpec, row: dict[str, Any], message: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(DataError, match=rf"data\.jsonl, line 2: .*{message}"):
        load(path, model)


def test_columns_of_other_names() -> None:
    reader = RowReader(CAUSAL, {"prompt": "question", "completion": "answer"})
    row = {"question": "a", "answer": "b", "prompt": "no", "text": "no"}
    assert reader.example_of(row) == Prompted("a", "b")
    assert reader.columns >= {"question", "answer"}
    body = {"prompt": "a", "completion": "b", "body": "c"}
    assert RowReader(CAUSAL, {"text": "body"}).example_of(body) == Plain("c")  # what was named goes before other forms
    with pytest.raises(RowError, match="it has no body, which --column text=body names; its fields are prompt"):
        RowReader(CAUSAL, {"text": "body"}).example_of({"prompt": "a"})
    with pytest.raises(RowError, match="no form of row has the columns txt together; those of this run are answer"):
        RowReader(CAUSAL, {"txt": "body"})
    with pytest.raises(RowError, match="no form of row has the columns text, output together"):
        RowReader(CAUSAL, {"text": "body", "output": "b"})


def test_labels_of_other_names() -> None:
    reader = RowReader(TWO, {}, {"neg": "bad", "4": "good"})
    assert [reader.example_of({"text": "a", "label": label}) for label in ("neg", 4, "4", "good", 1)] == [
        Labelled("a", index) for index in (0, 1, 1, 1, 1)
    ]
    with pytest.raises(RowError, match="say which it is with --label"):
        reader.example_of({"text": "a", "label": "pos"})
