"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems of primary school, with their solutions step by step.

The data set's own files: `train` and `test` as JSONL (packed or not) or Parquet, with the columns `question` and `answer`; the
final answer stands behind "####".
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from flexlora_client.training.data.examples import Prompted
from flexlora_shared.messages.base import Message
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.data_rows import files_of, read
from flexlora_simulation.workloads.own_options import read_options

NUMBER = re.compile(r"(?<![\w)])-?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")  # a minus behind a number is a difference
MARK = "####"


class NoOptions(Message):
    """There are none."""


class Gsm8k(Workload):
    """Solutions written greedily, right where their final number is."""

    metric = "exact_answer"
    higher_is_better = True
    own_metric = "flexlora_simulation.workloads.gsm8k:exact_answer"

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError("workload: gsm8k needs data, a folder with train and test, and model")
        read_options(NoOptions, options)
        self._folder, self._model = Path(options.data), options.model

    def corpus(self) -> Corpus:
        """All problems; they have no labels and no groups, so they are dealt uniform or by size."""
        return Corpus(*(read(files_of(self._folder, part), _item) for part in ("train", "test")))

    def base_model(self) -> BaseModel:
        """The language model named in the options."""
        return BaseModel(self._model)


def _item(row: Mapping[str, str]) -> Item:
    return Item(Prompted(f"Question: {row['question'].strip()}\nAnswer:\n", row["answer"].strip()))


def exact_answer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of the solutions whose final answer is the reference's, as a number: 1,000 and 1000.0 are the same."""
    pairs = zip(predictions, references, strict=True)
    right = (final_answer(one) == final_answer(other) is not None for one, other in pairs)
    return sum(right) / len(predictions)


def final_answer(text: str) -> Decimal | None:
    """The first number behind "####"; without that mark the last number; None, where there is none."""
    _, mark, behind = text.partition(MARK)
    numbers = NUMBER.findall(behind)[:1] if mark else NUMBER.findall(text)[-1:]
    return Decimal(numbers[0].replace(",", "")) if numbers else None
