"""Encodings: which are found out, which are guessed and told, and which are left to the participant."""

import gzip
from pathlib import Path

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Plain
from flexlora_client.training.data.files.text_files import CHUNK, find_encoding
from flexlora_client.training.data.reading import Reading
from flexlora_client.training.data.rows import ReadOptions
from flexlora_shared.messages.runs import ModelSpec

CAUSAL = ModelSpec(id="model")
FRENCH = "déjà vu à la télé, où est l'été; ça va très bien"


def read(path: Path, encoding: str | None = None) -> tuple[list[str], list[str]]:
    """The texts of a file, and what was told."""
    reading = Reading(DataOptions((path,), encoding=encoding), CAUSAL)
    texts = [example.text for example in reading.examples([path]) if isinstance(example, Plain)]
    return texts, reading.tally.notes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "csv.gz"])
def test_unicode_is_found_out_and_nothing_is_told(tmp_path: Path, encoding: str, ending: str) -> None:
    texts = [FRENCH, "日本語", "Привет"]
    rows = {
        "csv": "text\n" + "".join(f'"{text}"\r\n' for text in texts),
        "jsonl": "\n" + "".join(f'{{"text": "{text}"}}\n' for text in texts),
        "json": "[" + ",\n".join(f'{{"text": "{text}"}}' for text in texts) + "]",
    }
    content = rows[ending.removesuffix(".gz")].encode(encoding)
    path = tmp_path / f"data.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert read(path) == (texts, [])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_told(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("text\nhéllo\n".encode(encoding))
    texts, notes = read(path)
    assert texts == ["héllo"]
    assert notes == [f"{path} is read as {encoding}, which its bytes look like; --encoding names another"]


@pytest.mark.parametrize(
    "text",
    [
        FRENCH,
        "Die Straße führt nach Köln",
        "He said \u201chello\u201d \u2013 it\u2019s fine",
        "El niño, ¿verdad?",
        "5 € für 20 °C",
    ],
)
def test_western_text_is_guessed_and_told_with_a_piece_of_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"text\nascii\n" + f'"{text}"\n'.encode("cp1252"))
    texts, notes = read(path)
    assert texts == ["ascii", text]
    assert len(notes) == 1
    assert notes[0].startswith(f"{path} is not UTF-8 and is read as cp1252, as in ")
    assert read(path, "cp1252") == (["ascii", text], [])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Zażółć gęślą jaźń, proszę bardzo", "cp1250"),
        ("Příliš žluťoučký kůň", "cp1250"),
        ("Привет, как дела?", "cp1251"),
        ("Καλημέρα, τι κάνεις", "cp1253"),
        ("これは日本語です", "shift_jis"),
        ("这是中文文本", "gb18030"),
    ],
)
def test_other_encodings_must_be_named(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(f'text\n"{text}"\n'.encode(encoding))
    with pytest.raises(DataError, match=r"data\.csv, line 2: not UTF-8 text; .* name its encoding with --encoding"):
        read(path)
    assert read(path, encoding) == ([text], [])


def test_damaged_utf_8_is_not_taken_for_western(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("text\ndéjà vu\n".encode() + b"\xe9t\xe9\n")
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        read(path)
    far = b"text\n" + "é\n".encode() + b"a\n" * CHUNK + b"\xe9t\xe9\n"
    path.write_bytes(far)
    assert find_encoding(path, ReadOptions()) == "utf-8"
    path.write_bytes("text\né\nab".encode() + b"\xc3")  # cut inside a character
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        read(path)


def test_a_name_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("text\ndéjà \n".encode("cp1252"))
    with pytest.raises(DataError, match="line 2: not UTF-8 text; save the file as UTF-8"):
        read(path, "utf-8")
    with pytest.raises(DataError, match=r"data\.csv is not utf-16-le text \(truncated data\)"):
        read(path, "utf-16-le")
