"""From what `--data` names to the rows in it: files by their ending, patterns, data set folders and image folders."""

import glob
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flexlora_client.errors import DataError
from flexlora_client.training.data.files.arrow_files import read_arrow, read_parquet
from flexlora_client.training.data.files.delimited import read_delimited
from flexlora_client.training.data.files.folders import ending, files_of_folder
from flexlora_client.training.data.files.json_files import read_json
from flexlora_client.training.data.rows import ReadOptions, Row

Reader = Callable[[Path, ReadOptions], Iterator[Row]]
TEXT_READERS: dict[str, Reader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
}
READERS: dict[str, Reader] = {
    **TEXT_READERS,
    **{f"{ending}.gz": reader for ending, reader in TEXT_READERS.items()},
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}


@dataclass(frozen=True)
class Source:
    """A data file, or where `label` is given, an image that stands for one row."""

    path: Path
    label: str | None = None


def find_sources(paths: Iterable[Path], options: ReadOptions, *, images: bool = False) -> tuple[Source, ...]:
    """The files behind names, patterns and folders, in order and each once; `images`: folders may be image folders.

    Raises:
        DataError: nothing is there, or a folder holds nothing to read or several parts that cannot be told apart.
    """
    found: dict[Path, Source] = {}
    for path in (match for name in paths for match in _expand(name)):
        is_folder = path.is_dir() and ending(path) not in READERS
        files = files_of_folder(path, READERS, options.note, images=images) if is_folder else [(path, None)]
        for source in (Source(file, label) for file, label in files):
            if found.setdefault(source.path.resolve(), source) is not source:
                options.note(f"{source.path} is named more than once and read once")
    return tuple(found.values())


def read_source(source: Source, options: ReadOptions) -> Iterator[Row]:
    """The rows of one source.

    Raises:
        DataError: the file cannot be read, its ending is unknown, or its content is not what the ending says.
    """
    path = source.path
    if source.label is not None:
        yield Row(str(path), {"image": path.name, "label": source.label})
        return
    reader = READERS.get(ending(path))
    if reader is None:
        raise DataError(f"{path}: the ending must be one of {', '.join(READERS)}; convert the file or rename it.")
    try:
        yield from reader(path, options)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {error.encoding} text ({error.reason}); name its encoding with --encoding."
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); pack or copy it again.") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); give an existing, readable file."
        ) from error


def read_rows(path: Path, options: ReadOptions | None = None) -> Iterator[Row]:
    """The rows of one data file. Raises: DataError, as `read_source` does."""
    return read_source(Source(path), options or ReadOptions())


def _expand(path: Path) -> list[Path]:
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # the pattern may be absolute
    if not matches:
        raise DataError(f"no file matches {path}; give an existing file, or a pattern in quotes.")
    return [Path(match) for match in matches]
