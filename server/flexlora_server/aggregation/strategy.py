"""The interface of an aggregation strategy, and the register of strategies by name.

A new rule is a class with `name`, `averages_factors`, `check` and `aggregate`, handed to `register`:

    class Mean:
        name = "mean"
        averages_factors = False

        def check(self, ranks): ...
        def aggregate(self, updates, previous, dtype):
            return truncate(*weighted_stack(updates), previous, dtype)

    register(Mean())
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from flexlora_server.aggregation.errors import AggregationError
from flexlora_server.aggregation.factors import GlobalFactors, Update


@dataclass(frozen=True)
class Aggregate:
    """What a round makes of one module.

    factors: the new global update.
    singular_values: the leading 64 of the aggregated W, before truncation, descending.
    total_energy: the squared Frobenius norm of that W.
    """

    factors: GlobalFactors
    singular_values: tuple[float, ...]
    total_energy: float


class Strategy(Protocol):
    """Turns a round's updates of one module into the next global update; the same input, the same bytes."""

    @property
    def name(self) -> str:
        """The name a run is defined with."""

    @property
    def averages_factors(self) -> bool:
        """Whether A and B are combined apart from each other; False for a rule that sees only products.

        Then one participant's B meets another's A, and uploads must keep each factor (`scaling * B` and A) within the run's
        norm bound, not just their product.
        """

    def check(self, ranks: Sequence[int]) -> None:
        """Raise UnsupportedRun if a run with these allowed ranks cannot be served."""

    def aggregate(self, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype) -> Aggregate:
        """The next global update, of previous' shapes, with A rounded to `dtype`; raises AggregationError."""


_registered: dict[str, Strategy] = {}


def register(strategy: Strategy) -> None:
    """Make a strategy available by its name; a name can be taken only once."""
    if strategy.name in _registered:
        raise AggregationError(f"a strategy named {strategy.name!r} is already registered: choose another name")
    _registered[strategy.name] = strategy


def strategy(name: str) -> Strategy:
    """The strategy of that name; raises AggregationError that lists the names there are."""
    if name not in _registered:
        raise AggregationError(f"there is no strategy {name!r}: choose one of {', '.join(strategies())}")
    return _registered[name]


def strategies() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_registered))
