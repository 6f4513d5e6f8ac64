"""Rows with labels: texts and pairs of texts, words with tags, images."""

from functools import partial

from flexlora_client.training.data.examples import Labelled, Pictured, Scored, Tagged
from flexlora_client.training.data.forms.labels import Labels
from flexlora_client.training.data.forms.values import Fields, Form, encodable, list_of, text_of
from flexlora_client.training.data.rows import RowError
from flexlora_shared.messages.runs import ProblemType

TEXTS = ((("text",), ("text_pair",)), (("sentence",), ("text_pair",)))  # needed, optional
PAIRS = ((("sentence1", "sentence2"), ()), (("premise", "hypothesis"), ()))
ONE_LABEL = ("label", "category")
WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels")


def text_forms(labels: Labels, problem: ProblemType) -> list[Form]:
    """Sequence classification: a text or two, and a label, labels, or numbers."""
    answers: dict[ProblemType, list[tuple[str, ...]]] = {
        "single-label": [(name,) for name in ONE_LABEL],
        "multi-label": [("labels",), ("label",), tuple(labels.names)],
        "regression": [("label",), ("labels",), ("score",), tuple(labels.names)],
    }
    return [
        Form((*texts, *answer), partial(_text, labels, problem, (*texts, *optional), answer), optional)
        for answer in answers[problem]
        for texts, optional in (*TEXTS, *PAIRS)
    ]


def _text(
    labels: Labels, problem: ProblemType, texts: tuple[str, ...], answer: tuple[str, ...], row: Fields
) -> Labelled | Scored:
    text, *others = [text_of(row, name) for name in texts if name in row]
    pair = others[0] if others else None
    if problem == "single-label":
        return Labelled(text, labels.index(row[answer[0]]), pair)
    values = [row[name] for name in answer] if len(answer) > 1 else _listed(row, answer[0])
    if problem == "regression":
        return Scored(text, labels.scores(values), pair)
    return Scored(text, labels.flags(values) if len(answer) > 1 else labels.present(values), pair)


def _listed(row: Fields, name: str) -> list[object]:
    """The list in a field, or the one value in it."""
    value = row[name]
    return list_of(row, name) if isinstance(value, list) or str(value).startswith("[") else [value]


def tag_forms(labels: Labels) -> list[Form]:
    """Token classification: words, and a tag for each."""
    return [Form((words, tags), partial(_tagged, labels, words, tags)) for words in WORDS for tags in TAGS]


def _tagged(labels: Labels, words: str, tags: str, row: Fields) -> Tagged:
    texts, marks = list_of(row, words), list_of(row, tags)
    if not texts or len(texts) != len(marks):
        raise RowError(f"it has {len(texts)} {words} and {len(marks)} {tags}; give one tag for each word.")
    spelled = [encodable(text, "a word") for text in texts if isinstance(text, str)]
    if len(spelled) < len(texts):
        raise RowError(f"{words} must be a list of texts.")
    return Tagged(tuple(spelled), tuple(labels.index(mark) for mark in marks))


def image_forms(labels: Labels) -> list[Form]:
    """Image classification: an image's bytes, and its label."""
    pairs = [(image, label) for image in ("image", "file_name") for label in ONE_LABEL]
    return [Form(pair, partial(_pictured, labels, *pair)) for pair in pairs]


def _pictured(labels: Labels, name: str, label: str, row: Fields) -> Pictured:
    image = row[name]
    if not isinstance(image, bytes):
        raise RowError(f"{name} is a {type(image).__name__}; it must be a file's bytes.")
    return Pictured(image, labels.index(row[label]))
