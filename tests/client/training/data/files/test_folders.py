"""Folders: what `datasets` saves, folders of files, and image folders."""

import json
from pathlib import Path

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.files.sources import find_sources
from flexlora_client.training.data.rows import ReadOptions
from tests.support.data_files import as_jsonl, as_stream

ROWS = [{"text": "a"}]


def found(folder: Path, *, images: bool = False) -> tuple[list[str], list[str]]:
    """The files below the folder, images behind their class, and what was told."""
    notes: list[str] = []
    sources = find_sources([folder], ReadOptions(note=notes.append), images=images)
    names = [(f"{source.label}: " if source.label else "") + str(source.path.relative_to(folder)) for source in sources]
    return names, notes


def save_dataset(folder: Path, files: int = 2) -> None:
    """As `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [as_stream(folder / f"data-{n:05}-of-{files:05}", ROWS).name for n in range(files)]
    as_stream(folder / "cache-0123", ROWS)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_data_set(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved")
    assert found(tmp_path / "saved") == (["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"], [])


def test_a_saved_data_set_with_several_parts(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / split, files=1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert found(tmp_path) == (
        ["train/data-00000-of-00001.arrow"],
        [f"{tmp_path}: its part train is taken, test left out"],
    )
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert found(tmp_path) == (["test/data-00000-of-00001.arrow"], [])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "dev"]}')
    with pytest.raises(DataError, match="holds test, dev; name the folder of one of them"):
        found(tmp_path)


@pytest.mark.parametrize("state", ["", "{}", "[]", '{"_data_files": 1}', '{"_data_files": [1]}'])
def test_a_damaged_data_set(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json .*save the data set again"):
        found(tmp_path)


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b", "a", "more/c", ".git/d"):
        as_jsonl(tmp_path / name, ROWS)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert found(tmp_path) == (["a.jsonl", "b.jsonl", "more/c.jsonl"], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        found(tmp_path / "empty")


def test_of_a_folder_with_several_parts_train_is_taken(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "notes"):
        as_jsonl(tmp_path / name, ROWS)
    names, notes = found(tmp_path)
    assert names == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert notes == [f"{tmp_path}: 2 of 4 files are taken, those named train"]
    for name in names:
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="holds files named test and none named train; name the files"):
        found(tmp_path)


def test_names_that_only_look_like_parts(tmp_path: Path) -> None:
    for name in ("contest", "device", "training_data", "trains"):
        as_jsonl(tmp_path / name, ROWS)
    assert len(found(tmp_path)[0]) == 4


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_a_folder_of_images_a_class(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.JPG", "dog/1.jpeg", "dog/notes.txt", ".hidden/1.png"):
        image(tmp_path / name)
    assert found(tmp_path, images=True) == (["cat: cat/1.png", "cat: cat/2.JPG", "dog: dog/1.jpeg"], [])
    with pytest.raises(DataError, match="holds no data files"):
        found(tmp_path)  # of a run on texts
    image(tmp_path / "3.png")
    with pytest.raises(DataError, match=r"holds images outside of folders of classes; .* metadata\.csv"):
        found(tmp_path, images=True)
    (tmp_path / "metadata.csv").write_text("file_name,label\n3.png,cat\n")
    assert found(tmp_path, images=True) == (["metadata.csv"], [])


def test_image_folders_of_several_parts(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "test/cat/1.png"):
        image(tmp_path / name)
    assert found(tmp_path, images=True) == (
        ["cat: train/cat/1.png"],
        [f"{tmp_path}: its part train is taken, test left out"],
    )


def test_a_folder_of_tables_with_images(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "data", ROWS)
    assert found(tmp_path, images=True) == (["data.jsonl"], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds neither data files nor folders of images"):
        found(tmp_path / "empty", images=True)
