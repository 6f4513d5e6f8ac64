"""Answers found in a text, in the format of SQuAD 2 (Rajpurkar et al. 2018, arXiv 1806.03822), as TeleQuAD's are.

Files: `train` and `test`, `dev` or `validation` (or SQuAD's own names): SQuAD's JSON (data, paragraphs, qas), or rows with
context, question, answers and title. Answers are measured by BERTScore: see `bertscore`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flexlora_client.training.data.examples import Prompted
from flexlora_client.training.evaluation.own_metric import OwnMetric
from flexlora_shared.messages.base import Message
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.bertscore import BertScore
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.data_rows import files_of, read
from flexlora_simulation.workloads.own_options import read_options

TRAIN = ("train", "train-v2.0", "train-v1.1")
TEST = ("test", "dev", "dev-v2.0", "dev-v1.1", "validation")


class ExtractiveOptions(Message):
    """What an experiment may choose."""

    scorer: Annotated[
        str, Field(description="Encoder that BERTScore is of: a folder, as seen from the data, or a hub id")
    ]
    scorer_layer: Annotated[int | None, Field(ge=1, description="Which of its layers; null: the last")] = None
    unanswerable: Annotated[
        str | None, Field(min_length=1, description="Answer to questions without one; null: they are left out")
    ] = None


class Extractive(Workload):
    """Answers written greedily; dealt by group, a group being the title of a document."""

    metric = "bertscore_f1"
    higher_is_better = True

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is None or options.model is None:
            raise ExperimentError("workload: extractive needs data, a folder with train and dev or test, and model")
        self._folder, self._model = Path(options.data), options.model
        self._options = read_options(ExtractiveOptions, options)
        beside = self._folder / self._options.scorer
        scorer = str(beside) if beside.is_dir() else self._options.scorer
        self.own_metric = OwnMetric("bertscore_f1", BertScore(scorer, self._options.scorer_layer))

    def corpus(self) -> Corpus:
        """All questions that have an answer, or are given one by the options."""
        return Corpus(*(self._items(*names) for names in (TRAIN, TEST)))

    def base_model(self) -> BaseModel:
        """The language model named in the options."""
        return BaseModel(self._model)

    def _items(self, *names: str) -> list[Item]:
        files = files_of(self._folder, *names)
        rows = _squad(files[0]) if files[0].suffix == ".json" else None
        made = [self._item(row) for row in rows] if rows is not None else read(files, self._item)
        return [item for item in made if item is not None]

    def _item(self, row: Mapping[str, Any]) -> Item | None:
        answers = _texts(row["answers"]) or [text for text in (self._options.unanswerable,) if text]
        if not answers:
            return None
        prompt = f"Context: {row['context'].strip()}\nQuestion: {row['question'].strip()}\nAnswer:\n"
        return Item(Prompted(prompt, answers[0], tuple(answers[1:])), group=row.get("title") or "untitled")


def _texts(answers: Any) -> list[str]:
    """The texts of SQuAD's list of answers, or of the hub's column of them, each once."""
    texts = answers["text"] if isinstance(answers, dict) else [answer["text"] for answer in answers]
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _squad(path: Path) -> Sequence[Mapping[str, Any]] | None:
    """The questions of a file of SQuAD's form, each with its context and title; None, where it is another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # an object a line
    if not (isinstance(content, dict) and "data" in content):
        return None
    try:
        return list(_questions(content["data"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not of SQuAD's form ({error!r}); give the data set's own file") from error


def _questions(documents: Any) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        for paragraph in document["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [] if asked.get("is_impossible") else asked["answers"]
                yield {
                    "title": document.get("title"),
                    "context": paragraph["context"],
                    "question": asked["question"],
                    "answers": answers,
                }
