"""JSON lists are read an element at a time, wherever the chunks that are read end."""

import json
from pathlib import Path

import pytest

from flexlora_client.training.data.files import json_files
from flexlora_client.training.data.files.sources import read_rows

VALUES = [{"text": 'a "b" \\ é \n' * 9, "n": [1, -2.5e3, True, None]}, {"text": "\u2028😀"}, {}, {"n": 12}]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_across_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    path = tmp_path / "data.json"
    path.write_text("\n \t" + json.dumps(VALUES, indent=indent) + "\n", encoding="utf-8")
    assert [dict(row.fields) for row in read_rows(path)] == VALUES


def test_elements_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('[{"a": 1}, {"a": 2},\n\n{"a":\n3},\n{"a": 4}]')
    assert [row.place.rpartition(" ")[2] for row in read_rows(path)] == ["1", "1", "3", "5"]


def test_an_object_a_line_may_be_called_json(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"a": "x\u2028y\x85z"}\r\n{"a": 2}')
    assert [row.fields["a"] for row in read_rows(path)] == ["x\u2028y\x85z", 2]
