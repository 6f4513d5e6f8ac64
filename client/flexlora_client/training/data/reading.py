"""Reads examples, and counts the rows that are none."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.files.image_files import image_bytes
from flexlora_client.training.data.files.sources import Source, find_sources, read_source
from flexlora_client.training.data.formats import RowReader
from flexlora_client.training.data.rows import ReadOptions, Row, RowError
from flexlora_shared.messages.runs import ModelSpec

SHOWN = 5  # faults kept with their place, and notes shown


@dataclass
class Tally:
    """What a reader has met so far."""

    rows: int = 0  # good and bad
    skipped: int = 0
    faults: list[str] = field(default_factory=list)  # the first SHOWN of those skipped, each with its place
    notes: list[str] = field(default_factory=list)  # what was guessed or left out


class Reading:
    """Reads the files of one participant for one run; `tally` is brought up to date as rows are read.

    Raises:
        DataError: an option names a column, a label, a separator or an encoding that there is not.
    """

    def __init__(self, options: DataOptions, model: ModelSpec) -> None:
        self.tally = Tally()
        self._skip, self._images = options.bad_rows == "skip", model.task_type == "IMAGE_CLASSIFICATION"
        _check(options, model)
        try:
            self._reader = RowReader(model, options.columns, options.labels)
        except RowError as error:
            raise DataError(f"--column: {error}") from None
        self._image_columns = (options.columns.get("image", "image"), "file_name") if self._images else ()
        self._options = ReadOptions(
            columns=self._reader.columns,
            expected=self._reader.expected,
            encoding=options.encoding,
            separator=options.separator,
            classes=_class_columns(self._reader.columns, options, model),
            note=self.tally.notes.append,
        )

    def examples(self, paths: Sequence[Path]) -> Iterator[Example]:
        """The examples of all files, one after the other.

        Raises:
            DataError: a file cannot be read, a row is no example and is not to be skipped, or there is no example at all.
        """
        sources, skipped, found = find_sources(paths, self._options, images=self._images), self.tally.skipped, False
        for source in sources:
            before = self.tally.rows
            for example in self._of(source, read_source(source, self._options)):
                found = True
                yield example
            if self.tally.rows == before:
                self.tally.notes.append(f"{source.path} holds no rows")
        if not found:
            raise DataError(self._nothing(paths, self.tally.skipped - skipped))

    def _of(self, source: Source, rows: Iterable[Row]) -> Iterator[Example]:
        for row in rows:
            self.tally.rows += 1
            try:
                yield self._example(source, row)
            except RowError as error:
                sentence = f"{row.place}: {error}"
                if not self._skip:
                    raise DataError(sentence) from None
                self.tally.skipped += 1
                if len(self.tally.faults) < SHOWN:
                    self.tally.faults.append(sentence)

    def _example(self, source: Source, row: Row) -> Example:
        if row.fault:
            raise RowError(row.fault)
        fields = row.content
        for name in self._image_columns:
            if fields.get(name) is not None:
                fields = {**fields, name: image_bytes(fields[name], source.path.parent)}
        return self._reader.example_of(fields)

    def _nothing(self, paths: Sequence[Path], skipped: int) -> str:
        names = ", ".join(map(str, paths))
        if skipped:
            return f"{names}: all of its {skipped} rows are bad, so nothing is left; the first: {self.tally.faults[0]}"
        return f"{names} holds no examples; give a file with at least one."


def _class_columns(columns: frozenset[str], options: DataOptions, model: ModelSpec) -> frozenset[str]:
    """The columns, as files name them, that may hold classes; those of numbers, or of 0 and 1 for one label, do not."""
    if not model.labels or model.problem_type == "regression":
        return frozenset()
    return columns.difference(model.labels, (options.columns.get(label, label) for label in model.labels))


def _check(options: DataOptions, model: ModelSpec) -> None:
    """Raises: DataError."""
    if options.separator is not None and (len(options.separator) != 1 or options.separator in '"\r\n'):
        raise DataError(f"--separator is {options.separator!r}; give one character other than a quote, or tab.")
    try:
        "".encode(options.encoding or "utf-8")  # refuses codecs of bytes too
    except LookupError:
        raise DataError(
            f"--encoding {options.encoding} is none that Python knows; try utf-8, utf-16, cp1252, cp1251 or gb18030."
        ) from None
    for theirs, ours in options.labels.items():
        if ours not in model.labels:
            some = ", ".join(model.labels[:5]) + (", ..." if len(model.labels) > 5 else "")
            raise DataError(f"--label {theirs}={ours}: the run has no label {ours}; its labels: {some or 'none'}.")
