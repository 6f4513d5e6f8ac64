"""What a form of rows is, and checks of its values: texts, lists and numbers."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.rows import RowError

Fields = Mapping[str, object]


def text_of(fields: Fields, name: str, *, may_be_empty: bool = False) -> str:
    """The text in a field. Raises: RowError."""
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise RowError(f"{name} is a {type(value).__name__}; it must be a text.")
    if not may_be_empty and not value.strip():
        raise RowError(f"{name} is empty; fill it in or delete the row.")
    return encodable(value, name)


def encodable(text: str, name: str) -> str:
    """The text, if it can be written as UTF-8, as tokenizers do. Raises: RowError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half a character (a lone surrogate); mend it or delete the row.") from None
    return text


def list_of(fields: Fields, name: str) -> list[object]:
    """The list in a field; CSV holds one as JSON. Raises: RowError."""
    value = fields[name]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{name} is no list in JSON ({error}).") from None
    if isinstance(value, list):
        return value
    raise RowError(f"{name} is a {type(value).__name__}; it must be a list.")


def texts_of(fields: Fields, name: str) -> tuple[str, ...]:
    """The texts in a field that may be missing. Raises: RowError."""
    texts = list_of(fields, name) if name in fields else []
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise RowError(f"{name} must be a list of texts, none of them empty.")
    return tuple(encodable(str(text), name) for text in texts)


def number_of(value: object, name: str) -> float:
    """A finite number; CSV holds one as text. Raises: RowError."""
    try:
        if isinstance(value, int | float | str) and math.isfinite(number := float(value)):
            return number
    except (ValueError, OverflowError):
        pass
    raise RowError(f"{name} is {str(value)[:80]!r}; it must be a number.")


@dataclass(frozen=True)
class Form:
    """The columns that a row must have, those that it may have, and what they make."""

    columns: tuple[str, ...]
    make: Callable[[Fields], Example]
    optional: tuple[str, ...] = ()
