"""CIFAR-100 (Krizhevsky 2009): photographs of 32 x 32 pixels, 100 classes in 20 superclasses.

The data set's own "python version": a folder with the pickled files `train`, `test` and `meta`, or with `cifar-100-python`, which
holds them. A pickle can run any code when it is read; these are read with nothing but NumPy's arrays allowed.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from flexlora_client.training.data.examples import Pictured
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.images import HeadOptions, classifier, png
from flexlora_simulation.workloads.own_options import read_options

FOLDER = "cifar-100-python"


class Cifar100(Workload):
    """Classification of photographs; dealt by class, or by superclass as the group."""

    metric = "accuracy"
    higher_is_better = True
    own_metric: str | None = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError("workload: cifar100 needs data, the folder cifar-100-python, and model, a ViT")
        folder = Path(options.data)
        self._folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        self._model, self._options = options.model, read_options(HeadOptions, options)

    def corpus(self) -> Corpus:
        """All images in the files' order."""
        fine, coarse = (_names(self._folder / "meta", f"{kind}_label_names") for kind in ("fine", "coarse"))
        return Corpus(*(_items(self._folder / part, fine, coarse) for part in ("train", "test")))

    def base_model(self) -> BaseModel:
        """The ViT named in the options, with a head of the 100 classes."""
        return classifier(self._model, _names(self._folder / "meta", "fine_label_names"), self._options)


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = tuple(_field(_unpickled(path), key, path))
    if not all(isinstance(name, str) for name in names):
        names = tuple(name.decode() for name in names)  # in the reading of Python 3, of a Python 2 string
    return names


def _items(path: Path, fine: tuple[str, ...], coarse: tuple[str, ...]) -> list[Item]:
    batch = _unpickled(path)
    pixels, labels, groups = (_field(batch, key, path) for key in ("data", "fine_labels", "coarse_labels"))
    try:
        images = np.asarray(pixels, dtype=np.uint8).reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
        return [
            Item(Pictured(png(image), label), label=fine[label], group=coarse[group])
            for image, label, group in zip(images, labels, groups, strict=True)
        ]
    except (ValueError, TypeError, IndexError) as error:
        raise _not_cifar(path, error) from error


class _Unpickler(pickle.Unpickler):
    """Makes NumPy's arrays and Python's plain values, and nothing else."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self.allowed:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of the data set needs")


def _unpickled(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError, IndexError) as error:
        raise _not_cifar(path, error) from error
    if not isinstance(content, dict):
        raise _not_cifar(path, f"it holds a {type(content).__name__}")
    return content


def _field(content: dict[Any, Any], key: str, path: Path) -> Any:
    found = content.get(key.encode(), content.get(key))  # bytes where Python 2 wrote it, as in the published files
    if found is None:
        raise _not_cifar(path, f"it has no {key}")
    return found


def _not_cifar(path: Path, reason: object) -> DataError:
    return DataError(
        f"{path} is no file of CIFAR-100's python version ({reason}); give the folder with train, test and meta"
    )
