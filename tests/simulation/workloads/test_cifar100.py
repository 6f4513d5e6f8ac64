"""CIFAR-100 from files of the format in which it is published: pickled by Python 2."""

import io
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexlora_client.training.data.examples import Pictured
from flexlora_simulation import simulate
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions, parse
from flexlora_simulation.workloads.cifar100 import Cifar100
from tests.support.simulated import folder_with_database, here
from tests.support.tiny_models import make_vit

FINE, COARSE = (b"apple", b"bear", b"cloud", b"dinosaur"), (b"living", b"not_living")
GROUPS = (0, 0, 1, 1)


def _save_as_string(pickler: Any, content: bytes) -> None:
    pickler.write(b"T" + struct.pack("<i", len(content)) + content)
    pickler.memoize(content)


class _Python2(pickle._Pickler):
    """Protocol 2 as Python 2 wrote it: its strings are bytes."""

    dispatch = pickle._Pickler.dispatch | {bytes: _save_as_string}


def write(path: Path, content: Mapping[bytes, Any]) -> None:
    file = io.BytesIO()
    _Python2(file, 2).dump(content)
    path.write_bytes(file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core."))  # NumPy 1's name of it


def part(count: int) -> dict[bytes, Any]:
    labels = [number % 4 for number in range(count)]
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": pixels, b"fine_labels": labels, b"coarse_labels": [GROUPS[label] for label in labels]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar") / "cifar-100-python"
    folder.mkdir()
    write(folder / "meta", {b"fine_label_names": list(FINE), b"coarse_label_names": list(COARSE)})
    write(folder / "train", part(48))
    write(folder / "test", part(8))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vit(tmp_path_factory.mktemp("vit"))


def cifar100(data: Path, model: Path = Path("none"), **options: Any) -> Cifar100:
    return Cifar100(WorkloadOptions(name="cifar100", data=str(data), model=str(model), options=options))


def test_pictures_have_their_pixels_classes_and_superclasses(data: Path) -> None:
    corpus, expected = cifar100(data).corpus(), part(8)[b"data"]
    assert (len(corpus.train), len(corpus.test)) == (48, 8)
    for number, item in enumerate(corpus.test):
        assert isinstance(item.example, Pictured)
        assert (item.label, item.group) == (FINE[number % 4].decode(), COARSE[GROUPS[number % 4]].decode())
        assert item.example.label == number % 4
        red, green, blue = expected[number].reshape(3, 32, 32)  # the published format: plane by plane
        with Image.open(io.BytesIO(item.example.image)) as image:
            np.testing.assert_array_equal(np.asarray(image), np.stack([red, green, blue], axis=-1))


def test_the_folder_above_does_as_well(data: Path) -> None:
    assert cifar100(data.parent).corpus() == cifar100(data).corpus()


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_a_file_that_would_run_code_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta").write_bytes((data / "meta").read_bytes())
    write(tmp_path / "train", {b"data": _Harmful()})
    with pytest.raises(DataError, match=r"train is no file of CIFAR-100.*posix\.mkdir"):
        cifar100(tmp_path).corpus()
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({b"fine_labels": None}, "it has no fine_labels"),
        ({b"data": np.zeros((8, 7), dtype=np.uint8)}, "cannot reshape"),
        ({b"fine_labels": [9] * 8}, "out of range"),
    ],
)
def test_a_file_of_another_format_is_named(data: Path, tmp_path: Path, change: dict[bytes, Any], sentence: str) -> None:
    (tmp_path / "meta").write_bytes((data / "meta").read_bytes())
    write(tmp_path / "train", part(8) | change)
    with pytest.raises(DataError, match=rf"train is no file of CIFAR-100.*{sentence}"):
        cifar100(tmp_path).corpus()


@pytest.mark.parametrize("content", [None, b"", b"no pickle", pickle.dumps([1])])
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "meta").write_bytes(content)
    with pytest.raises(DataError, match=r"meta is no file of CIFAR-100"):
        cifar100(tmp_path).corpus()


def test_it_needs_data_and_a_model() -> None:
    with pytest.raises(ExperimentError, match=r"cifar100 needs data, .* and model, a ViT"):
        Cifar100(WorkloadOptions(name="cifar100"))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_two_rounds(data: Path, vit: Path, tmp_path: Path, head: str) -> None:
    experiment = parse(
        {
            "name": "cifar100",
            "workload": {"name": "cifar100", "data": str(data), "model": str(vit), "options": {"head": head}},
            "partition": {"by": "label", "participants": 3, "alpha": 0.1, "smallest": 2},
            "resources": [{"rank": 1}, {"rank": 2}],
            "run": {"rounds": 2, "training": {"max_steps": 1, "batch_size": 4}},
            "evaluation": {"ranks": "largest", "every": 2},
        }
    )
    figures = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here).evaluations
    accuracy = figures[figures.metric == "accuracy"]
    assert accuracy["round"].tolist() == [0, 2]
    assert accuracy.examples.tolist() == [8, 8]
    assert accuracy.value.between(0, 1).all()
    assert figures[figures.metric == "loss"].value.nunique() == 2
