"""Small learnable tasks of every kind: rows for data files, and the figures of a plain transformers model on them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from statistics import correlation, fmean
from typing import Any

from PIL import Image

from flexlora_shared.messages.runs import ProblemType, TaskType
from tests.support.architectures import ARCHITECTURES, Architecture

Row = dict[str, Any]
Figures = dict[str, float]
COLOURS = ("blue", "green", "red")
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "owl": "hoo"}
WORDS = {"hello": "B-PER", "bird": "I-PER", "tree": "B-LOC", "the": "O", "sings": "O"}  # each begins with another token
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")  # more than the saved head has
LABELS = ("bird", "fish", "tree")


@dataclass(frozen=True)
class Task:
    """A run's task, a model for it, and what its metrics are when computed by hand."""

    architecture: str  # a row of the table
    labels: tuple[str, ...]
    rows: Callable[[random.Random], Row]
    by_hand: Callable[[Any, Any, Sequence[Row]], Figures]  # of a model, its tokenizer or image processor, and rows
    rises: str  # this metric rises clearly
    problem: ProblemType = "single-label"

    @property
    def model(self) -> Architecture:
        return next(one for one in ARCHITECTURES if one.name == self.architecture)

    @property
    def task_type(self) -> TaskType:
        return self.model.task

    def make_rows(self, count: int, seed: int) -> list[Row]:
        """Rows to learn from or to hold out."""
        return [self.rows(random.Random(f"{seed} {number}")) for number in range(count)]


def coloured(chance: random.Random) -> Row:
    """A noisy image that is mostly of one colour; `image` is a PNG."""
    index = chance.randrange(3)
    around = [30, 30, 30]
    around[2 - index] = 200
    image = Image.new("RGB", (20, 18))
    spread = [[max(0, value + chance.randint(-30, 50)) for value in around] for _ in range(20 * 18)]
    image.putdata([tuple(pixel) for pixel in spread])
    content = BytesIO()
    image.save(content, "PNG")
    return {"image": content.getvalue(), "label": COLOURS[index]}


def tagged(chance: random.Random) -> Row:
    """A few words and their tags."""
    words = chance.choices(list(WORDS), k=chance.randint(3, 7))
    return {"words": words, "tags": [WORDS[word] for word in words]}


def sounding(chance: random.Random) -> Row:
    animal = chance.choice(list(SOUNDS))
    return {"prompt": f"{animal} {chance.randrange(100)}", "completion": SOUNDS[animal]}


def several(chance: random.Random) -> Row:
    present = [label for label in LABELS if chance.random() < 0.5]
    return {"text": " ".join([*present, str(chance.randrange(100))]), "labels": present}


def scored(chance: random.Random) -> Row:
    index = chance.randrange(3)
    return {"text": f"{LABELS[index]} {chance.randrange(100)}", "score": index - 1.0 + chance.random() / 10}


def paired(chance: random.Random) -> Row:
    """Only the second text tells."""
    index = chance.randrange(3)
    return {"sentence1": "What?", "sentence2": f"{LABELS[index]} {chance.randrange(100)}", "label": LABELS[index]}


def classes_by_hand(inputs: Callable[[Any, Row], Any], labels: Sequence[str]) -> Callable[..., Figures]:
    """Accuracy and macro-F1 of one class a row."""

    def figures(model: Any, reader: Any, rows: Sequence[Row]) -> Figures:
        said = [model.config.id2label[int(model(**inputs(reader, row)).logits.argmax())] for row in rows]
        expected = [row["label"] for row in rows]
        assert {*said, *expected} <= {*labels}
        return {"accuracy": share_equal(said, expected), "macro_f1": macro_f1(said, expected)}

    return figures


def tags_by_hand(model: Any, reader: Any, rows: Sequence[Row]) -> Figures:
    """Accuracy of words, and F1 of those tagged other than O."""
    said: list[str] = []
    for row in rows:
        made = reader([f" {word}" for word in row["words"]], is_split_into_words=True, return_tensors="pt")
        chosen, of_word = model(**made).logits[0].argmax(dim=-1).tolist(), made.word_ids()
        said += [model.config.id2label[chosen[of_word.index(number)]] for number in range(len(row["words"]))]
    expected = [tag for row in rows for tag in row["tags"]]
    hits = sum(one == other != "O" for one, other in zip(said, expected, strict=True))
    marked = sum(tag != "O" for tag in said) + sum(tag != "O" for tag in expected)
    return {"accuracy": share_equal(said, expected), "tag_f1": 2 * hits / marked}


def answers_by_hand(model: Any, reader: Any, rows: Sequence[Row]) -> Figures:
    """Share of answers that a plain `generate` writes as expected."""
    asked = [reader(row["prompt"], return_tensors="pt") for row in rows]
    written = [model.generate(**prompt, max_new_tokens=24, do_sample=False)[0] for prompt in asked]
    said = [reader.decode(ids, skip_special_tokens=True).strip() for ids in written]
    return {"exact_match": share_equal(said, [row["completion"] for row in rows])}


def labels_by_hand(model: Any, reader: Any, rows: Sequence[Row]) -> Figures:
    """Rows right in every label, and mean F1 of the labels."""
    said = [(model(**reader(row["text"], return_tensors="pt")).logits[0] > 0).tolist() for row in rows]
    expected = [[label in row["labels"] for label in LABELS] for row in rows]
    each = []
    for column in range(len(LABELS)):
        pairs = [(one[column], other[column]) for one, other in zip(said, expected, strict=True)]
        each.append(2 * pairs.count((True, True)) / (2 * pairs.count((True, True)) + sum(a != b for a, b in pairs)))
    return {"accuracy": share_equal(said, expected), "macro_f1": fmean(each)}


def scores_by_hand(model: Any, reader: Any, rows: Sequence[Row]) -> Figures:
    """Errors and Pearson's correlation."""
    said = [float(model(**reader(row["text"], return_tensors="pt")).logits) for row in rows]
    expected = [row["score"] for row in rows]
    errors = [one - other for one, other in zip(said, expected, strict=True)]
    return {
        "mse": fmean(error**2 for error in errors),
        "mae": fmean(map(abs, errors)),
        "pearson": correlation(said, expected),
    }


def share_equal(said: Sequence[object], expected: Sequence[object]) -> float:
    return fmean(one == other for one, other in zip(said, expected, strict=True))


def macro_f1(said: Sequence[str], expected: Sequence[str]) -> float:
    pairs = list(zip(said, expected, strict=True))
    each = []
    for name in {*said, *expected}:
        right = pairs.count((name, name))
        each.append(2 * right / (said.count(name) + expected.count(name)))
    return fmean(each)


def read_image(reader: Any, row: Row) -> Any:
    return reader(Image.open(BytesIO(row["image"])), return_tensors="pt")


def read_pair(reader: Any, row: Row) -> Any:
    return reader(row["sentence1"], row["sentence2"], return_tensors="pt")


IMAGES = Task("vit", COLOURS, coloured, classes_by_hand(read_image, COLOURS), "accuracy")
TEXTS = {
    "tags": Task("bert TOKEN_CLS", TAGS, tagged, tags_by_hand, "tag_f1"),
    "answers": Task("t5", (), sounding, answers_by_hand, "exact_match"),
    "multi-label": Task("xlm-roberta SEQ_CLS", LABELS, several, labels_by_hand, "macro_f1", problem="multi-label"),
    "regression": Task("deberta-v2 SEQ_CLS", ("score",), scored, scores_by_hand, "pearson", problem="regression"),
    "pairs": Task("bert SEQ_CLS", LABELS, paired, classes_by_hand(read_pair, LABELS), "accuracy"),
}
