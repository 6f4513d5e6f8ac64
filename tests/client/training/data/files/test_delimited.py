"""Separators, quotes, and line numbers of CSV and TSV."""

from pathlib import Path

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.files.sources import read_rows
from flexlora_client.training.data.rows import ReadOptions


def rows(path: Path, **options: object) -> list[tuple[str, dict[str, object]]]:
    read = read_rows(path, ReadOptions(**options))  # type: ignore[arg-type]
    return [(row.place.removeprefix(f"{path}, "), dict(row.fields)) for row in read]


@pytest.mark.parametrize(
    ("content", "separator"),
    [
        ("text,label\na;b,1\n", ","),
        ("text;label\n1,5;1\n", ";"),
        ("text\tlabel\na,b\t1\n", "tab"),
        ("text|label\na,b|1\n", "|"),
        ("text (a, b);label\na;1\nb;0\n", ";"),
        ('"text";"label"\n"a;b";1\n', ";"),
        ("text\na\n", ","),
    ],
)
def test_the_separator_is_found_and_told(tmp_path: Path, content: str, separator: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    notes: list[str] = []
    assert len(rows(path, note=notes.append)[0][1]) == ("label" in content) + 1
    assert notes == ([] if separator == "," else [f"{path} is separated by {separator}"])


def test_a_separator_that_is_told_counts(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("text,id\tlabel\na\t1\n")
    assert rows(path) == [("line 2", {"text,id": "a", "label": "1"})]
    path.write_text("a:b\n1:2\n")
    assert rows(path, separator=":") == [("line 2", {"a": "1", "b": "2"})]


def test_rows_are_named_by_the_line_they_begin_in(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\ufefftext,id\r\n\r\n"two\r\nlines",1\r\nlast,\r\n', newline="")
    assert rows(path) == [("line 3", {"text": "two\r\nlines", "id": "1"}), ("line 5", {"text": "last", "id": None})]


def test_long_values_and_unnamed_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(",,text\n0,1," + "a" * 200_000 + "\n")
    assert rows(path, columns=frozenset({"text"})) == [("line 2", {"text": "a" * 200_000})]


def test_a_reader_that_wants_no_faults_is_told_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text\na\nb,c\n")
    with pytest.raises(DataError, match="line 3: 2 values for 1 columns"):
        rows(path)
