"""A participant's own metric: a function `package.module:function` of predictions and references.

    def within_one(predictions, references):
        return sum(abs(int(p) - int(r)) <= 1 for p, r in zip(predictions, references)) / len(references)

Both are lists of the same length, an entry an example: texts where the model writes (a reference is a tuple of texts where an
example has several right answers, the learned one first), names of labels where it classifies
(tuples of names for multi-label, lists of one a word for tags), tuples of numbers for regression. It returns one number, which
is named like the function, or a mapping of names to numbers.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexlora_client.errors import PluginError

METRIC_NAME_PATTERN = re.compile(r"[a-z][a-z0-9_.-]{0,63}")  # the protocol's


@dataclass(frozen=True)
class OwnMetric:
    """A loaded function, and the name its single number gets."""

    name: str
    function: Callable[[Sequence[Any], Sequence[Any]], object]

    def __call__(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """The figures by name. Raises: PluginError, where the function returns no numbers or names the protocol lacks."""
        returned = self.function(predictions, references)
        figures: dict[str, float] = {}
        for name, value in (returned if isinstance(returned, Mapping) else {self.name: returned}).items():
            if not (isinstance(name, str) and METRIC_NAME_PATTERN.fullmatch(name)):
                raise PluginError(
                    f"--metric {self.name} names a figure {name!r:.80}; a name is a lower-case letter followed by at most 63 "
                    "lower-case letters, digits, dots, underscores or hyphens."
                )
            figures[name] = self._number(name, value)
        return figures

    def _number(self, name: str, value: object) -> float:
        try:
            return float(value)  # type: ignore[arg-type]  # a stranger's function returns what it likes
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"--metric {self.name} returned {value!r:.80} for {name}; it must return a number, or numbers by name."
            ) from error


def load_metric(name: str) -> OwnMetric:
    """The function called `package.module:function`. Raises: PluginError."""
    module_name, _, function_name = name.partition(":")
    if not (module_name and METRIC_NAME_PATTERN.fullmatch(function_name)):
        raise PluginError(
            f"--metric {name!r} is not of the form package.module:function, with the function's name in lower case."
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # importing runs the participant's own code, which may raise anything
        raise PluginError(
            f"the module of --metric {name!r} does not import ({type(error).__name__}: {error}); "
            "install it or put its folder on PYTHONPATH."
        ) from error
    if not callable(function):
        raise PluginError(f"--metric {name!r} names no function; check the name.")
    return OwnMetric(function_name, function)
