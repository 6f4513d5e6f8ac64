"""The interface of an aggregation strategy, and the register of strategies by name.

A new rule is a class with these attributes and methods, handed to `register`:

    class Mean:
        name = "mean"
        averages_factors = False
        measures_changes = False
        agents_train = "slice"

        def check(self, ranks): ...
        def aggregate(self, updates, previous, dtype, error_bound=1.0):
            return truncate(weighted_stack(updates), previous, dtype, error_bound)

    register(Mean())
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from flexlora_server.aggregation.errors import AggregationError
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_shared.messages.tasks import Trainable

_PARTS = ("name", "averages_factors", "measures_changes", "agents_train", "check", "aggregate")


@dataclass(frozen=True)
class Aggregate:
    """What a round makes of one module.

    factors: the new global update.
    singular_values: the leading 64 of the aggregated W, before truncation, descending.
    total_energy: the squared Frobenius norm of that W.
    certificate: the truncation's error is at most this many times the smallest possible; 1 where it is exact.
    route: how W was decomposed; `fell_back` names the routes that failed before, and why.
    """

    factors: GlobalFactors
    singular_values: tuple[float, ...]
    total_energy: float
    certificate: float = 1.0
    route: str = ""
    fell_back: tuple[str, ...] = ()


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

    @property
    def measures_changes(self) -> bool:
        """Whether an update counts by what it changed in the slice it was served; False where what it is counts.

        Then an update that comes late moves tensors beside LoRA, too, by what it changed in those it was served.
        """

    @property
    def agents_train(self) -> Trainable:
        """What agents train: both factors of the `slice` they are served, its `B` alone, or a `fresh` adapter on top of it."""

    def check(self, ranks: Sequence[int]) -> None:
        """Raise UnsupportedRun if a run with these allowed ranks cannot be served."""

    def aggregate(
        self, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
    ) -> Aggregate:
        """The next global update, of previous' shapes; raises AggregationError.

        A holds values of the served `dtype`, so that agents send back what the coordinator has; unless they train fresh ones.

        `error_bound`: a truncation may have up to this many times the smallest possible error, certified; 1: the exact one.
        """


_registered: dict[str, Strategy] = {}


def register(strategy: Strategy) -> None:
    """Make a strategy available by its name; a name can be taken only once. Raises AggregationError."""
    missing = [part for part in _PARTS if not hasattr(strategy, part)]
    if missing:
        raise AggregationError(f"the strategy {strategy!r} lacks {', '.join(missing)}: see Strategy for what they mean")
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
