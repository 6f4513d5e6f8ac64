"""Options that several commands share, as the fields of one dataclass."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def expand_options(command: Callable[..., None], name: str, kind: type) -> Callable[..., None]:
    """Give a command the options that are the fields of the dataclass `kind`, in the place of its parameter `name`."""
    options = list(inspect.signature(kind).parameters.values())

    @wraps(command)
    def wrapper(**arguments: Any) -> None:
        grouped = kind(**{option.name: arguments.pop(option.name) for option in options})
        command(**{name: grouped}, **arguments)

    signature = inspect.signature(command)
    expanded = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for declared in signature.parameters.values()
        for parameter in (options if declared.name == name else [declared])
    ]
    wrapper.__signature__ = signature.replace(parameters=expanded)  # type: ignore[attr-defined]  # typer reads it
    return wrapper
