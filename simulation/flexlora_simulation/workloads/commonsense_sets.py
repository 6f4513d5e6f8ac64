"""The formats of eight data sets of commonsense questions, and the question that each becomes.

Questions are worded as EleutherAI's lm-evaluation-harness words them. WinoGrande's is the sentence up to its blank, and each
option goes on with the rest of the sentence: all of it counts in the likelihood, where the harness counts the rest alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora_client.training.data.examples import Choice
from flexlora_simulation.errors import DataError
from flexlora_simulation.workloads.data_rows import files_of, read

Row = Mapping[str, Any]


@dataclass(frozen=True)
class QuestionSet:
    """One data set: the names that its two files may have, and what a row of them is."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    choice: Callable[[Row], Choice]

    def read(self, folder: Path) -> tuple[list[Choice], list[Choice]]:
        """Training and test examples. Raises: DataError."""
        return self._part(folder, self.train), self._part(folder, self.test)

    def _part(self, folder: Path, names: tuple[str, ...]) -> list[Choice]:
        files = files_of(folder, *names)
        rows = read(files, dict)
        labels = files[0].with_name(files[0].name.split(".")[0] + "-labels.lst")
        if labels.exists():  # PIQA and SIQA have the answers in a file beside the questions
            answers = labels.read_text(encoding="utf-8").split()
            if len(answers) != len(rows):
                raise DataError(f"{labels} has {len(answers)} answers to {len(rows)} questions; copy both files again")
            rows = [{**row, "label": answer} for row, answer in zip(rows, answers, strict=True)]
        return [self._made(files[0], number, row) for number, row in enumerate(rows, 1)]

    def _made(self, file: Path, number: int, row: Row) -> Choice:
        try:
            return self.choice(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{file}, question {number}: no row of this data set, or one without its answer ({error!r})"
            ) from error


def _chosen(prompt: str, choices: Sequence[str], answer: int) -> Choice:
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer} of {len(choices)}")
    return Choice(prompt, tuple(f" {choice.strip()}" for choice in choices), answer)


def _boolq(row: Row) -> Choice:
    answer = row["answer"] if "answer" in row else row["label"]  # SuperGLUE's copy has numbers
    return _chosen(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes"), int(answer))


def _piqa(row: Row) -> Choice:
    return _chosen(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), int(row["label"]))


def _siqa(row: Row) -> Choice:
    choices = [row[f"answer{letter}"] for letter in "ABC"]
    return _chosen(f"Q: {row['context']} {row['question']}\nA:", choices, int(row["label"]) - 1)


def _hellaswag(row: Row) -> Choice:
    prompt = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _chosen(_without_marks(prompt), [_without_marks(ending) for ending in row["endings"]], int(row["label"]))


def _without_marks(text: str) -> str:
    """Without the marks of WikiHow's pages in square brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Row) -> Choice:
    before, _, behind = row["sentence"].partition("_")
    choices = [row[f"option{number}"] + behind for number in (1, 2)]
    return _chosen(before.rstrip(), choices, int(row["answer"]) - 1)


def _arc(row: Row) -> Choice:
    question, choices = _stem_and_choices(row)
    return _lettered(f"Question: {question}\nAnswer:", choices, row["answerKey"])


def _obqa(row: Row) -> Choice:
    question, choices = _stem_and_choices(row)
    return _lettered(question, choices, row["answerKey"])


def _stem_and_choices(row: Row) -> tuple[str, list[tuple[str, str]]]:
    """The question, and mark and text of its choices, in either of the two forms of the Allen Institute's files."""
    question = row["question_stem"] if "question_stem" in row else row["question"]
    if isinstance(question, dict):
        return question["stem"], [(choice["label"], choice["text"]) for choice in question["choices"]]
    choices = row["choices"]
    return question, list(zip(choices["label"], choices["text"], strict=True))


def _lettered(prompt: str, choices: Sequence[tuple[str, str]], answer: str) -> Choice:
    marks, texts = zip(*choices, strict=True)
    return _chosen(prompt, texts, marks.index(answer))


TRAIN, VALIDATION = ("train",), ("validation", "dev", "valid")
SETS: Mapping[str, QuestionSet] = {
    "boolq": QuestionSet(TRAIN, VALIDATION, _boolq),
    "piqa": QuestionSet(TRAIN, VALIDATION, _piqa),
    "siqa": QuestionSet(TRAIN, VALIDATION, _siqa),
    "hellaswag": QuestionSet(("train", "hellaswag_train"), ("validation", "hellaswag_val"), _hellaswag),
    "winogrande": QuestionSet(("train", "train_xl", "train_l", "train_m", "train_s"), VALIDATION, _winogrande),
    "arc-e": QuestionSet(("train", "ARC-Easy-Train"), ("test", "ARC-Easy-Test"), _arc),
    "arc-c": QuestionSet(("train", "ARC-Challenge-Train"), ("test", "ARC-Challenge-Test"), _arc),
    "obqa": QuestionSet(TRAIN, ("test",), _obqa),
}
