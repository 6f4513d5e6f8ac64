"""Sentences about the wrong fields of a definition: which field, what is wrong with it, and what to give instead."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

SHOWN = 60  # characters of a wrong value


def sentences(error: Exception, model: type[BaseModel]) -> list[str]:
    """A sentence for each wrong field of what was to be a `model`, without a full stop."""
    if not isinstance(error, ValidationError):
        return [f"it is not made of plain values (texts, numbers, lists, mappings): {error}"]
    faults = error.errors()
    inner = [fault["loc"][:-1] for fault in faults]
    told = [fault for fault in faults if not (fault["type"] == "too_short" and fault["loc"] in _prefixes(inner))]
    return list(dict.fromkeys(_sentence(fault, model) for fault in told))


def _prefixes(paths: Iterable[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Everything that holds a wrong field: a list of which a part is wrong counts as shorter than it was given."""
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


def _sentence(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    path = [part for part in fault["loc"] if isinstance(part, int) or _is_name(str(part))]
    place = ".".join(map(str, path))
    holder, name = _holder(model, path)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, holder.model_fields, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{place}: there is no such field; {meant}there are {', '.join(holder.model_fields)}"
    field = holder.model_fields.get(name)
    wanted = f" ({field.description})" if field is not None and field.description else ""
    if fault["type"] == "missing":
        return f"{place}: it is missing{wanted}"
    if "error" in fault.get("ctx", {}):  # a check of ours, which tells it all
        return f"{place}: {fault['ctx']['error']}".removeprefix(": ")
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{place}: {message}, not {_shown(fault['input'])}{wanted}"


def _is_name(part: str) -> bool:
    """Whether it is a field's name, and not what pydantic calls a part of a union, such as `tuple[int, ...]`."""
    return not any(character in part for character in "[](),")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _holder(model: type[BaseModel], path: list[Any]) -> tuple[type[BaseModel], str]:
    """The model that the last named field of the path belongs to, and that field's name."""
    names = [part for part in path if isinstance(part, str)]
    for name in names[:-1]:
        field = model.model_fields.get(name)
        inner = next(_models(field.annotation), None) if field is not None else None
        if inner is None:
            return model, name
        model = inner
    return model, names[-1] if names else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type: itself, or those that it is a list or a choice of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
