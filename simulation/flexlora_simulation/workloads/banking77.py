"""BANKING77 (Casanueva et al. 2020, arXiv 2003.04807): questions of a bank's customers, 77 intents.

The data set's own files: `train.csv` and `test.csv` with the columns `text` and `category`.
"""

import csv
from pathlib import Path

from flexlora_client.training.data.examples import Labelled
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload


class Banking77(Workload):
    """Classification of questions by intent; dealt by label."""

    metric = "accuracy"
    higher_is_better = True
    own_metric: str | None = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError("workload: banking77 needs data, a folder with train.csv and test.csv, and model")
        if options.options:
            raise ExperimentError(f"workload.options: banking77 has no option {next(iter(options.options))!r}")
        self._folder, self._model = Path(options.data), options.model

    def corpus(self) -> Corpus:
        """All questions; labels are in alphabetical order."""
        train, test = (_read(self._folder / f"{part}.csv") for part in ("train", "test"))
        number = {label: index for index, label in enumerate(sorted({label for _, label in train}))}

        def items(rows: list[tuple[str, str]]) -> list[Item]:
            return [Item(Labelled(text, number[label]), label=label) for text, label in rows]

        return Corpus(items(train), items(test))

    def base_model(self) -> BaseModel:
        """The encoder named in the options, with a head of 77 classes."""
        labels = tuple(sorted({label for _, label in _read(self._folder / "train.csv")}))
        return BaseModel(self._model, "SEQ_CLS", labels, target=("query", "value"))


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(row["text"], row["category"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no file of BANKING77 (columns text and category): {error!r}") from error
