"""The aggregation strategies by name: what a run's other parts must know of each, and where its mathematics is.

A new one is a module with a function `aggregate` (see `Strategy.aggregate`), say `mine/mean.py`,

    def aggregate(updates, previous, dtype, error_bound=1.0):
        return truncate(weighted_stack(updates), previous, dtype, error_bound)

and a line beside those at the end of this file, which coordinator and workers read:

    register(Strategy("mean", module="mine.mean"))

The module is imported where a round is aggregated: whoever asks here only what agents train does without PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from flexlora_server.aggregation.errors import AggregationError, UnsupportedRun
from flexlora_shared.messages.tasks import Trainable

if TYPE_CHECKING:
    import torch

    from flexlora_server.aggregation.factors import GlobalFactors, Update
    from flexlora_server.aggregation.truncate import Aggregate


@dataclass(frozen=True)
class Strategy:
    """Turns a round's updates of one module into the next global update; the same input, the same bytes.

    name: what a run is defined with. module: has the function `aggregate`.
    averages_factors: A and B are combined apart from each other; else the rule sees only products. Then one participant's B
    meets another's A, and uploads must keep each factor (`scaling * B` and A) within the run's norm bound, not just their
    product.
    measures_changes: an update counts by what it changed in the slice it was served; else what it is counts. Then an update
    that comes late moves tensors beside LoRA, too, by what it changed in those it was served.
    agents_train: both factors of the `slice` they are served, its `B` alone, or a `fresh` adapter on top of it.
    one_rank: serves one rank for all; else any mix.
    """

    name: str
    module: str
    averages_factors: bool = False
    measures_changes: bool = False
    agents_train: Trainable = "slice"
    one_rank: bool = False

    def check(self, ranks: Sequence[int]) -> None:
        """Raise UnsupportedRun if a run with these allowed ranks cannot be served."""
        if self.one_rank and len(set(ranks)) != 1:
            raise UnsupportedRun(
                f"{self.name} averages the factors and needs one rank for all, not {sorted(set(ranks))}: "
                "allow a single rank, or choose flexlora"
            )

    def aggregate(
        self, updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float = 1.0
    ) -> Aggregate:
        """The next global update, of previous' shapes; raises AggregationError.

        A holds values of the served `dtype`, so that agents send back what the coordinator has; unless they train fresh ones.

        `error_bound`: a truncation may have up to this many times the smallest possible error, certified; 1: the exact one.
        """
        found: Aggregate = import_module(self.module).aggregate(updates, previous, dtype, error_bound)
        return found


_registered: dict[str, Strategy] = {}


def register(strategy: Strategy) -> None:
    """Make a strategy available by its name; a name can be taken only once. Raises AggregationError.

    Its module must be there, or everybody would train before a worker finds that out.
    """
    try:
        found = find_spec(strategy.module)
    except (ImportError, ValueError) as error:  # of a package that it is to be in, or of its name
        raise AggregationError(
            f"the module {strategy.module} of {strategy.name!r} cannot be looked for: {error}"
        ) from error
    if found is None:
        raise AggregationError(f"there is no module {strategy.module}, in which {strategy.name!r} is to be")
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


_HERE = __name__.rpartition(".")[0]
register(Strategy("flexlora", f"{_HERE}.flexlora"))
register(Strategy("flexlora-residual", f"{_HERE}.residual", measures_changes=True))
register(Strategy("fedavg", f"{_HERE}.fedavg", averages_factors=True, one_rank=True))
register(Strategy("ffa", f"{_HERE}.ffa", averages_factors=True, agents_train="B", one_rank=True))
register(Strategy("hetlora", f"{_HERE}.hetlora", averages_factors=True))
register(Strategy("flora", f"{_HERE}.flora", agents_train="fresh"))
