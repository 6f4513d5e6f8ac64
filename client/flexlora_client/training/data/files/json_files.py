"""Reads JSON: an object a line, or one list of objects, of which one element at a time is in memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from flexlora_client.errors import DataError
from flexlora_client.training.data.files.text_files import encoding_of, is_text, not_text, open_text
from flexlora_client.training.data.rows import ReadOptions, Row

WHITE_SPACE = re.compile(r"[ \t\r\n]*")
CHUNK = 1 << 16  # characters
MOST = 1 << 28  # characters of one element of a list
NEAR_THE_END = 16  # characters: a literal or an escape that is cut off fails no farther from the end


def read_json(path: Path, options: ReadOptions) -> Iterator[Row]:
    """The rows of a JSONL file or of a JSON list; which of the two it is, its first character says.

    Raises:
        DataError: a list is broken; a line that is broken is a row with a fault.
    """
    encoding = encoding_of(path, options)
    with open_text(path, encoding, newline="\n") as file:
        read = _elements if _opens_list(file) else _lines
        yield from read(path, file, encoding)


def _opens_list(file: TextIO) -> bool:
    while not (start := file.read(CHUNK)).strip():
        if not start:
            break
    file.seek(0)
    return start.lstrip().startswith("[")


def _lines(path: Path, file: TextIO, encoding: str) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place, value = f"{path}, line {number}", None
        if not is_text(line):
            yield Row(place, {}, not_text(encoding))
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(place, {}, f"not JSON ({error}); write one JSON object a line, or one list of objects.")
            continue
        yield _row(place, value)


def _row(place: str, value: object) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, {}, f"a JSON {type(value).__name__}; each row must be an object with its fields by name.")


def _elements(path: Path, file: TextIO, encoding: str) -> Iterator[Row]:
    elements = _Elements(path, file)
    elements.skip("[")
    while (sign := elements.peek()) != "]":
        start = elements.line
        value, text = elements.value()
        place = f"{path}, line {start}"
        yield _row(place, value) if is_text(text) else Row(place, {}, not_text(encoding))
        if (sign := elements.peek()) == ",":
            elements.skip(",")
        elif sign != "]":
            raise elements.broken("a comma or ] is missing" if sign else "it ends before its list does")
    elements.skip("]")
    if elements.peek():
        raise elements.broken("something follows its list")


class _Elements:
    """The text of a list, read as far as its elements are asked for."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file, self._decoder = path, file, json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            space = WHITE_SPACE.match(self._text, self._at)
            self._advance(len(space[0]) if space else 0)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more(CHUNK)

    def skip(self, sign: str) -> None:
        """Go past `sign`, which comes next."""
        assert self.peek() == sign
        self._advance(1)

    def value(self) -> tuple[object, str]:
        """The next value, and its text. Raises: DataError."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - NEAR_THE_END
                if self._ended or not cut or len(self._text) > MOST:
                    raise self.broken(str(error.msg)) from error
                self._more(max(CHUNK, len(self._text)))  # doubled: an element is parsed a few times at most
            except (ValueError, RecursionError) as error:
                raise self.broken(str(error)) from error
            else:
                text = self._text[self._at : end]
                self._advance(end - self._at)
                return value, text

    def broken(self, reason: str) -> DataError:
        """The error that the list is broken where it is read."""
        return DataError(f"{self._path}, line {self.line}: not JSON ({reason}); mend it, or write one object a line.")

    def _advance(self, count: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def _more(self, count: int) -> None:
        chunk = self._file.read(count)
        self._ended = not chunk
        self._text, self._at = self._text[self._at :] + chunk, 0
