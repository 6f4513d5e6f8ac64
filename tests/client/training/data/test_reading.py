"""Files that cannot be read, rows that are skipped, and what the options ask for."""

from pathlib import Path

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Example, Labelled, Plain
from flexlora_client.training.data.reading import SHOWN, Reading
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import as_csv, as_jsonl, as_parquet, load

CAUSAL = ModelSpec(id="model")
CLASSES = ModelSpec(id="model", task_type="SEQ_CLS", labels=("no", "yes"))

BAD: list[tuple[str, bytes, str]] = [
    ("data.jsonl", b'{"text": "a"}\n{"text": \n', r"data\.jsonl, line 2: not JSON .* one JSON object a line"),
    ("data.jsonl", b'"text"\n', r"line 1: a JSON str; each row must be an object"),
    ("data.jsonl", b"[" * 100_000, r"line 1: not JSON"),
    ("data.jsonl", b'{"text": ' + b"1" * 5000 + b"}", r"line 1: not JSON"),
    ("data.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: not UTF-8 .* name its encoding with --encoding"),
    ("data.jsonl", b"\n \n", r"data\.jsonl holds no examples"),
    ("data.jsonl", b"", r"data\.jsonl holds no examples"),
    ("data.json", b'["text"]\n', r"line 1: a JSON str; each row must be an object"),
    ("data.json", b'[\n{"text": "a"},\n{"text": }]', r"data\.json, line 3: not JSON \(Expecting value\)"),
    ("data.json", b'[{"text": "a"}', r"line 1: not JSON \(it ends before its list does\)"),
    ("data.json", b'[{"text": "a"} {"text": "b"}]', r"line 1: not JSON \(a comma or \] is missing\)"),
    ("data.json", b'[{"text": "a"}] {}', r"not JSON \(something follows its list\)"),
    ("data.json", b'[{"text": "a"},\n{"text": "\xff\xff"}]', r"line 2: not UTF-8"),
    ("data.json", b"[]", r"data\.json holds no examples"),
    ("data.jsonl.gz", b"\x1f\x8b", r"data\.jsonl\.gz is damaged"),
    ("data.jsonl.gz", b'{"text": "a"}', r"data\.jsonl\.gz cannot be read \(Not a gzipped file"),
    ("data.csv", b"prompt,completion\na,b\nc\n", r"data\.csv, line 3: 1 values for 2 columns"),
    ("data.csv", b"prompt,completion\na,b,c\n", r"line 2: 3 values for 2 columns; put texts that hold the separator"),
    ("data.csv", b'text\n"a\n', r"data\.csv, line 2: not CSV \(unexpected end of data\); check its quotes"),
    ("data.csv", b'"text', r"data\.csv, line 1: not CSV .*; check its quotes"),
    ("data.csv", b'text\n"a" b\nc\n', r"data\.csv, line 2: not CSV"),
    ("data.csv", b"text\n\xff\n", r"line 2: not UTF-8"),
    ("data.csv", b"text\n", r"data\.csv holds no examples"),
    ("data.csv", b"", r"data\.csv holds no examples"),
    ("data.csv", b"prompt,completion,completion\na,b,c\n", r"data\.csv has two columns named completion"),
    ("data.csv", b"a,b\n1,2\n", r"data\.csv: its columns are 'a', 'b'; a language model learns .* --column text=body"),
    ("data.csv", b"\x00\x01\x02\x03" * 9, r"data\.csv holds bytes that are no text"),
    ("data.csv", b"\xff\xfet\x00e\x00x\x00t\x00\n\x00a", r"data\.csv is not utf-16-le text \(truncated data\)"),
    ("data.parquet", b"PAR1", r"data\.parquet is no Parquet file, or a damaged one"),
    ("data.parquet", b"", r"data\.parquet is no Parquet file"),
    ("data.arrow", b"", r"data\.arrow is no Arrow file"),
    ("data.arrow", b"ARROW1\0\0", r"data\.arrow is no Arrow file"),
    ("data.txt", b"text", r"the ending must be one of \.jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, CAUSAL)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz"])
def test_files_that_are_not_there(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / f"none.{ending}", CAUSAL)
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / f"folder.{ending}", CAUSAL)


def test_a_cut_file_is_refused_after_the_rows_it_still_has(tmp_path: Path) -> None:
    whole = as_parquet(tmp_path / "whole", [{"text": f"text {n}"} for n in range(100)]).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet is no Parquet file, or a damaged one"):
        load(tmp_path / "cut.parquet", CAUSAL)


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "data", [{"text": "a"}, {"text": " "}])
    with pytest.raises(DataError, match=r"data\.parquet, row 2: text is empty"):
        load(path, CAUSAL)


def examples(reading: Reading, *paths: Path) -> list[Example]:
    return list(reading.examples(paths))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", '{"text": "a"}\n{"text": \n{"txt": "a"}\n{"text": ""}\n7\n{"text": "b"}\n'),
        ("data.json", '[{"text": "a"},\n{"txt": "a"},\n{"text": ""},\n7,\n8, {"text": "b"}]'),
        ("data.csv", 'text,id\n"x" y,2\n"","3"\na,1\nb,c,d\nb\nb,5\n'),
    ],
)
def test_bad_rows_are_skipped_where_asked_and_counted(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    reading = Reading(DataOptions((path,), bad_rows="skip"), CAUSAL)
    assert examples(reading, path) == [Plain("a"), Plain("b")]
    assert (reading.tally.rows, reading.tally.skipped, len(reading.tally.faults)) == (6, 4, 4)
    assert reading.tally.faults[1].startswith(f"{path}, line 3: ")
    with pytest.raises(DataError, match="line 2: "):
        examples(Reading(DataOptions((path,)), CAUSAL), path)


def test_only_the_first_bad_rows_are_kept(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", [{"text": ""}] * 9 + [{"text": "a"}])
    reading = Reading(DataOptions((path,), bad_rows="skip"), CAUSAL)
    assert examples(reading, path) == [Plain("a")]
    assert (reading.tally.skipped, len(reading.tally.faults)) == (9, SHOWN)


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", [{"text": ""}, {"text": " "}])
    with pytest.raises(DataError, match=r"all of its 2 rows are bad.*the first: .*line 1: text is empty"):
        examples(Reading(DataOptions((path,), bad_rows="skip"), CAUSAL), path)


def test_several_files_and_patterns_are_all_taken_once(tmp_path: Path) -> None:
    first = as_jsonl(tmp_path / "part-1", [{"text": "a"}])
    second = as_csv(tmp_path / "part-2", [{"text": "b"}])
    (tmp_path / "part-3.csv").write_text("text\n")
    reading = Reading(DataOptions(()), CAUSAL)
    assert examples(reading, second, first) == [Plain("b"), Plain("a")]
    assert examples(reading, tmp_path / "part-*", first) == [Plain("a"), Plain("b")]
    assert reading.tally.notes == [
        f"{first} is named more than once and read once",
        f"{tmp_path / 'part-3.csv'} holds no rows",
    ]
    with pytest.raises(DataError, match=r"no file matches .*none-\*"):
        examples(reading, tmp_path / "none-*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataOptions((), separator="ab"), "--separator is 'ab'; give one character other than a quote, or tab"),
        (DataOptions((), separator='"'), "give one character other than a quote"),
        (DataOptions((), encoding="latin-17"), "--encoding latin-17 is none that Python knows"),
        (DataOptions((), encoding="base64"), "--encoding base64 is none that Python knows"),
        (DataOptions((), labels={"ja": "oui"}), "--label ja=oui: the run has no label oui; its labels: no, yes"),
        (DataOptions((), columns={"txt": "body"}), "--column: no form of row has the columns txt together"),
    ],
)
def test_options_that_fit_nothing(options: DataOptions, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Reading(options, CLASSES)


def test_columns_and_labels_of_other_names(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "data", [{"body": "a", "intent": "ja"}, {"body": "b", "intent": "no"}])
    options = DataOptions((path,), columns={"text": "body", "label": "intent"}, labels={"ja": "yes"})
    assert examples(Reading(options, CLASSES), path) == [Labelled("a", 1), Labelled("b", 0)]
