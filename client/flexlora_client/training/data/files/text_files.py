"""Opens text files: gzip, byte-order marks, and encodings that are told or found out.

What is valid UTF-8 is UTF-8, as good as certainly. Nothing in a file says which one-byte encoding it has, and detectors answer
short French with `mac_latin2`; so one alone is guessed, Windows' Western European (cp1252, which holds Latin-1), only where
every letter fits, and the guess is told. Anything else stays UTF-8, with rows that are not.
"""

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from flexlora_client.errors import DataError
from flexlora_client.training.data.rows import ReadOptions

CHUNK = 1 << 20  # bytes
SAMPLE = 1 << 16  # bytes from which an encoding is guessed
MARKS = (  # UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
LETTERS = (
    r"\xc0-\xcf\xd1-\xd6\xd8-\xdc\xdf-\xef\xf1-\xf6\xf8-\xfc\u0152\u0153"  # of French, German, Spanish and their like
)
BESIDE_WORDS = r"\xa1-\xac\xae-\xb6\xb8-\xbf\u2018\u201a\u201c-\u201e\u2022\u2039\u203a\u20ac\u2122"
ANYWHERE = r"\x00-\x7f\xa0\xad\xb7\u2013\u2014\u2019\u2026"
NOT_WESTERN = re.compile(  # a strange letter, many in a row, or a mark between two: letters of another encoding
    f"[^{LETTERS}{BESIDE_WORDS}{ANYWHERE}]|[{LETTERS}]{{3}}|[a-zA-Z{LETTERS}][{BESIDE_WORDS}][a-zA-Z{LETTERS}]"
)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def encoding_of(path: Path, options: ReadOptions) -> str:
    """The name of the file's encoding, found out where none is told."""
    name = codecs.lookup(options.encoding).name if options.encoding else find_encoding(path, options)
    return "utf-8-sig" if name == "utf-8" else name  # a byte-order mark is no text


@contextmanager
def open_text(path: Path, encoding: str, newline: str) -> Iterator[TextIO]:
    """The file's text, decompressed where its name ends in .gz; what holds bytes that are no text, `is_text` says.

    Raises:
        OSError, EOFError, zlib.error, UnicodeDecodeError: the file cannot be read to its end.
    """
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    with (
        open_bytes(path) as raw,
        io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline=newline) as file,
    ):
        yield file


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, decompressed where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def is_text(value: str) -> bool:
    """Whether all its bytes were of the file's encoding; `surrogateescape` left others as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_text(encoding: str) -> str:
    """The fault of a row that is not `is_text`."""
    name = encoding.removesuffix("-sig").upper()
    return f"not {name} text; save the file as UTF-8, or name its encoding with --encoding."


def find_encoding(path: Path, options: ReadOptions) -> str:
    """The name of the file's encoding; tells `options.note` where it is guessed."""
    with open_bytes(path) as file:
        head = file.read(4096)
        for mark, name in MARKS:
            if head.startswith(mark):
                return name
        if b"\0" in head:
            return _without_mark(path, head, options)
        file.seek(0)
        return _eight_bits(path, file, options)


def _without_mark(path: Path, head: bytes, options: ReadOptions) -> str:
    """UTF-16 without its mark: every other byte of ASCII text is zero."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    if CONTROL.search(head[: len(head) // 2 * 2].decode(encoding, "replace")):
        raise DataError(f"{path} holds bytes that are no text; give a text file, or name its encoding with --encoding.")
    options.note(f"{path} is read as {encoding}, which its bytes look like; --encoding names another")
    return encoding


def _eight_bits(path: Path, file: BinaryIO, options: ReadOptions) -> str:
    sample = _sample_that_is_not_utf8(file)
    if not sample:
        return "utf-8"
    text = sample.decode("cp1252", "replace")
    if UTF8_SEQUENCE.search(sample) or NOT_WESTERN.search(text):
        return "utf-8"  # damaged, or of an encoding that nothing tells: its rows are refused
    options.note(f"{path} is not UTF-8 and is read as cp1252, as in {_around_first(text)!r}; --encoding names another")
    return "cp1252"


def _sample_that_is_not_utf8(file: BinaryIO) -> bytes:
    """What stands around the first byte that is no UTF-8, with a character beyond ASCII from before; empty where all is UTF-8."""
    decoder, beyond_ascii = codecs.getincrementaldecoder("utf-8")(), b""
    while chunk := file.read(CHUNK):
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            return beyond_ascii + (error.object[max(0, error.start - 200) :] + file.read(SAMPLE))[:SAMPLE]
        if not beyond_ascii and not chunk.isascii() and (found := UTF8_SEQUENCE.search(chunk)):
            beyond_ascii = found[0]
    return b"" if not decoder.getstate()[0] else beyond_ascii + decoder.getstate()[0]


def _around_first(text: str) -> str:
    place = next(at for at, sign in enumerate(text) if not sign.isascii())
    return text[max(0, place - 15) : place + 15].strip()
