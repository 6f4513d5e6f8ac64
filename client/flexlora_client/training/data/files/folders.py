"""Folders of data: what `datasets` saves, folders of images with one folder a class, folders of files.

Where a folder holds several splits, the one named train is taken, and the note says so.
"""

import json
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from flexlora_client.errors import DataError

Note = Callable[[str], None]
Found = Sequence[tuple[Path, str | None]]  # files, and of images their class
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGE_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
OTHER_SPLITS = "test|testing|valid|validation|val|dev|eval|evaluation"
SPLIT = re.compile(rf"(?:^|[-_./])(train|training|{OTHER_SPLITS})(?=[-_./0-9]|$)", re.IGNORECASE)


def files_of_folder(folder: Path, endings: Container[str], note: Note, *, images: bool) -> Found:
    """The files to read in a folder.

    Raises:
        DataError: there are none, or several splits of which none is named train.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _listed(folder / "dataset_dict.json", "splits")
        return files_of_folder(_choose_split(folder, names, note), endings, note, images=images)
    if (folder / "state.json").is_file():
        return [(folder / str(_filename(folder, file)), None) for file in _listed(folder / "state.json", "_data_files")]
    if images and (pictures := _image_folder(folder, note)):
        return pictures
    files = [path for path in _files(folder) if ending(path) in endings and path.name not in ABOUT_DATA]
    if not files:
        kind = "neither data files nor folders of images" if images else "no data files"
        raise DataError(f"{folder} holds {kind}; name a file, or a folder that holds some.")
    return [(path, None) for path in _without_other_splits(folder, files, note)]


def ending(path: Path) -> str:
    """What says how a file is read: its last ending in small letters, with the one before where that is .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _listed(path: Path, key: str) -> list[object]:
    """A list in one of the files that `datasets` writes."""
    try:
        listed = json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError):
        listed = None
    if not isinstance(listed, list):
        raise DataError(f"{path} does not list the data set's {key.strip('_')}; save the data set again.")
    return listed


def _filename(folder: Path, file: object) -> object:
    if isinstance(file, dict) and isinstance(file.get("filename"), str):
        return file["filename"]
    raise DataError(f"{folder / 'state.json'} names no file where it should; save the data set again.")


def _choose_split(folder: Path, names: Sequence[object], note: Note) -> Path:
    if "train" not in names and len(names) != 1:
        raise DataError(f"{folder} holds {', '.join(map(str, names)) or 'nothing'}; name the folder of one of them.")
    chosen = "train" if "train" in names else str(names[0])
    if len(names) > 1:
        others = ", ".join(str(name) for name in names if name != chosen)
        note(f"{folder}: its part {chosen} is taken, {others} left out")
    return folder / chosen


def _image_folder(folder: Path, note: Note) -> Found:
    """The images of each class's folder, or the table that names images; empty where this is no image folder."""
    for name in IMAGE_TABLES:
        if (folder / name).is_file():
            return [(folder / name, None)]
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    names = [path.name for path in classes]
    if names and all(SPLIT.fullmatch(name) for name in names) and not any(map(_images, classes)):
        return _image_folder(_choose_split(folder, names, note), note)
    if any(path.suffix.lower() in IMAGE_ENDINGS for path in folder.iterdir() if path.is_file()):
        raise DataError(
            f"{folder} holds images outside of folders of classes; move each into a folder named like its label, "
            "or add a metadata.csv with the columns file_name and label."
        )
    return [(image, path.name) for path in classes for image in _images(path)]


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_ENDINGS]


def _files(folder: Path) -> list[Path]:
    """All files below the folder, those in hidden folders left out."""
    paths = sorted(folder.rglob("*"))
    return [
        path
        for path in paths
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _without_other_splits(folder: Path, files: Sequence[Path], note: Note) -> Sequence[Path]:
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    others = {split for split in splits.values() if split not in ("", "train")}
    if not others:
        return files
    kept = [path for path in files if splits[path] == "train"]
    if not kept:
        raise DataError(f"{folder} holds files named {', '.join(sorted(others))} and none named train; name the files.")
    note(f"{folder}: {len(kept)} of {len(files)} files are taken, those named train")
    return kept


def _split_of(path: Path) -> str:
    """The split that the file's name, or that of a folder above it, names; empty where none does."""
    for part in reversed(path.parts):
        if found := SPLIT.search(part):
            name = found[1].lower()
            return "train" if name.startswith("train") else name
    return ""
