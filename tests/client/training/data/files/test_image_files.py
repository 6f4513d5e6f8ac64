"""Images of rows: bytes, structures as `datasets` writes them, names of files; and pictures that cannot be opened."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Pictured
from flexlora_client.training.data.reading import Reading
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import as_csv, as_jsonl, load

IMAGES = ModelSpec(id="model", task_type="IMAGE_CLASSIFICATION", labels=("cat", "dog"))


def picture(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), shade).save(file, kind)
    return file.getvalue()


CAT, DOG = picture(1), picture(2, "JPEG")
EXPECTED = (Pictured(CAT, 0), Pictured(DOG, 1))


def test_images_inside_of_parquet(tmp_path: Path) -> None:
    (tmp_path / "dog.jpg").write_bytes(DOG)
    path = tmp_path / "data.parquet"
    as_datasets = [{"bytes": CAT, "path": None}, {"bytes": None, "path": "dog.jpg"}]
    pq.write_table(pa.table({"image": as_datasets, "label": [0, 1]}), path)
    assert load(path, IMAGES) == EXPECTED
    pq.write_table(pa.table({"image": [CAT, DOG], "label": ["cat", "dog"]}), path)
    assert load(path, IMAGES) == EXPECTED


def test_images_in_folders_of_classes(tmp_path: Path) -> None:
    for name, content in (("cat/1.png", CAT), ("dog/1.jpg", DOG)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    assert load(tmp_path, IMAGES) == EXPECTED
    (tmp_path / "cat").rename(tmp_path / "kitten")
    with pytest.raises(DataError, match=r"kitten/1\.png: label 'kitten' is none of the run's 2 labels"):
        load(tmp_path, IMAGES)
    assert set(Reading(DataOptions((), labels={"kitten": "cat"}), IMAGES).examples([tmp_path])) == set(EXPECTED)


def test_images_that_a_table_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(CAT)
    (tmp_path / "b.jpg").write_bytes(DOG)
    rows = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.jpg", "label": "dog"}]
    as_csv(tmp_path / "metadata", rows)
    assert load(tmp_path, IMAGES) == EXPECTED
    path = as_jsonl(tmp_path / "data", [{"pic": str(tmp_path / "a.png"), "label": 0}, {"pic": "b.jpg", "label": 1}])
    assert tuple(Reading(DataOptions((), columns={"image": "pic"}), IMAGES).examples([path])) == EXPECTED


def test_pictures_that_cannot_be_opened_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.png").write_bytes(CAT[:10])
    names = ["broken.png", "none.png", 7, ""]
    for name, message in zip(names, ["cannot be opened", "cannot be read", "is a int", "is empty"], strict=True):
        path = as_jsonl(tmp_path / "data", [{"image": name, "label": 0}])
        with pytest.raises(DataError, match=rf"line 1: its image .*{message}"):
            load(path, IMAGES)
    (tmp_path / "a.png").write_bytes(CAT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    with pytest.raises(DataError, match="its image is too large"):
        load(as_jsonl(tmp_path / "data", [{"image": "a.png", "label": 0}]), IMAGES)


def test_an_image_is_represented_by_its_digest() -> None:
    assert repr(Pictured(b"abc", 1)).startswith("Pictured(image=ba7816bf8f01cfea414140de5dae2223")
    assert repr(Pictured(CAT, 1)) != repr(Pictured(DOG, 1))
