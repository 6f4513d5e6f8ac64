"""Multiple choice: a question, its choices, and which of them is right."""

from collections.abc import Sequence

from flexlora_client.training.data.examples import Choice
from flexlora_client.training.data.forms.values import Fields, Form, encodable, list_of, text_of
from flexlora_client.training.data.rows import RowError


def choice_form(prompt: str, answer: str) -> Form:
    """The form with these columns beside `choices`."""
    return Form((prompt, "choices", answer), lambda row: _choice(row, prompt, answer))


def _choice(row: Fields, prompt: str, answer: str) -> Choice:
    """`choices`: texts, or as in ARC {text, label}."""
    value = row["choices"]
    choices = value.get("text") if isinstance(value, dict) else list_of(row, "choices")
    marks = value.get("label") if isinstance(value, dict) else None
    listed = choices if isinstance(choices, list) else []
    texts = tuple(encodable(choice, "a choice") for choice in listed if isinstance(choice, str))
    if len(texts) < 2 or len(texts) < len(listed):
        raise RowError("choices must be a list of at least two texts.")
    return Choice(text_of(row, prompt), texts, _answer(row[answer], texts, marks if isinstance(marks, list) else []))


def _answer(value: object, choices: Sequence[str], marks: Sequence[object]) -> int:
    """The answer is the mark of a choice, the choice itself, its letter from A, or its index from 0."""
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    for names in (marks, choices, letters):
        if isinstance(value, str) and value in names:
            return names.index(value)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if type(value) is int and 0 <= value < len(choices):
        return value
    raise RowError(f"answer {str(value)[:80]!r} is none of its {len(choices)} choices; name one, or its index from 0.")
