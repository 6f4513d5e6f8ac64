"""The aggregation strategies by name: their properties, and the module that implements each.

A package of your own brings another one without a change here: a module with a function `aggregate` (see
`Strategy.aggregate`), say `mine/mean.py`,

    def aggregate(updates, previous, dtype, error_bound=1.0):
        return truncate(weighted_stack(updates), previous, dtype, error_bound)

what must be known of it, say in `mine/__init__.py`,

    mean = Strategy("mean", module="mine.mean")

and an entry point in its pyproject.toml, which coordinator and workers look up:

    [project.entry-points."flexlora.strategies"]
    mean = "mine:mean"

A strategy may take options of runs (`StrategyOptions`), as keyword arguments of its function, if it names them:
`Strategy("mean", module="mine.mean", options=("leak",))`. The module is imported where a round is aggregated:
reading its properties here needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from flexlora_server.errors import PluginUnusable, UnsupportedRun
from flexlora_shared.messages.strategy_options import StrategyOptions
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.plugins import STRATEGY_GROUP, PluginFault, load_plugin, plugin_names, require_module

if TYPE_CHECKING:
    import torch

    from flexlora_server.aggregation.factors import GlobalFactors, Update
    from flexlora_server.aggregation.truncate import Aggregate

NO_OPTIONS = StrategyOptions()


@dataclass(frozen=True)
class Strategy:
    """Turns a round's updates of one module into the next global update; the same input, the same bytes.

    name: what a run is defined with. module: has the function `aggregate`.
    averages_factors: A and B are combined apart from each other, or in parts; else the rule sees only products. Then one
    participant's B meets another's A, or parts that cancel in the product are weighed apart, and uploads must keep each factor
    (`scaling * B` and A) within the run's norm bound, not just their product.
    measures_changes: an update counts by what it changed in the slice it was served; else what it is counts. Then an update
    that comes late moves tensors beside LoRA, too, by what it changed in those it was served.
    agents_train: both factors of the `slice` they are served, its `B` alone, or a `fresh` adapter on top of it.
    in_even_rounds: what agents train in rounds 2, 4, ... where that is something else. Round 1 begins with lora_B = 0.
    one_rank: serves one rank for all; else any mix.
    options: the options of a run that the rule takes, by their names in `StrategyOptions`.
    """

    name: str
    module: str
    averages_factors: bool = False
    measures_changes: bool = False
    agents_train: Trainable = "slice"
    in_even_rounds: Trainable | None = None
    one_rank: bool = False
    options: tuple[str, ...] = ()

    def trained_in(self, round_: int) -> Trainable:
        """What agents train in that round, from 1."""
        return self.in_even_rounds if self.in_even_rounds is not None and round_ % 2 == 0 else self.agents_train

    def check(self, ranks: Sequence[int], options: StrategyOptions = NO_OPTIONS) -> None:
        """Raise UnsupportedRun if a run with these allowed ranks and options cannot be served."""
        for name in options.given:
            if name not in self.options:
                taken = f"it takes {' and '.join(self.options)}" if self.options else "it takes none"
                raise UnsupportedRun(f"{self.name} has no option {name!r}: leave it out of strategy_options ({taken})")
        if self.one_rank and len(set(ranks)) != 1:
            raise UnsupportedRun(
                f"{self.name} averages the factors and needs one rank for all, not {sorted(set(ranks))}: "
                "allow a single rank, or choose flexlora"
            )

    def aggregate(
        self,
        updates: Sequence[Update],
        previous: GlobalFactors,
        dtype: torch.dtype,
        error_bound: float = 1.0,
        options: StrategyOptions = NO_OPTIONS,
    ) -> Aggregate:
        """The next global update, of previous' shapes; raises AggregationError.

        A holds values of the served `dtype`, so that agents send back what the coordinator has; unless they train fresh ones.

        `error_bound`: a truncation may have up to this many times the smallest possible error, certified; 1: the exact one.
        Of `options` the function gets those that it takes.
        """
        taken = {name: getattr(options, name) for name in self.options}
        result: Aggregate = import_module(self.module).aggregate(updates, previous, dtype, error_bound, **taken)
        return result


_PACKAGE = __name__.rpartition(".")[0]
_BUILT_IN = {
    rule.name: rule
    for rule in (
        Strategy("flexlora", f"{_PACKAGE}.flexlora", options=("energy",)),
        Strategy(
            "flexlora-residual", f"{_PACKAGE}.residual", measures_changes=True, options=("leak", "shrink", "energy")
        ),
        Strategy("fedavg", f"{_PACKAGE}.fedavg", averages_factors=True, one_rank=True),
        Strategy("ffa", f"{_PACKAGE}.ffa", averages_factors=True, agents_train="B", one_rank=True),
        Strategy(
            "rolora",
            f"{_PACKAGE}.rolora",
            averages_factors=True,
            agents_train="B",
            in_even_rounds="A",
            one_rank=True,
        ),
        Strategy("fedsvd", f"{_PACKAGE}.fedsvd", agents_train="B"),
        Strategy("raflora", f"{_PACKAGE}.raflora", averages_factors=True),
        Strategy("hetlora", f"{_PACKAGE}.hetlora", averages_factors=True, options=("weighting",)),
        Strategy("flora", f"{_PACKAGE}.flora", agents_train="fresh"),
    )
}


def strategies() -> tuple[str, ...]:
    """The names there are, sorted: the built-in ones and those that installed packages offer."""
    return tuple(sorted({*_BUILT_IN, *plugin_names(STRATEGY_GROUP)}))


def strategy(name: str) -> Strategy:
    """The strategy of that name; a built-in name cannot be taken by a package.

    Raises:
        PluginUnusable: there is none, with the names there are; or a package offers one that cannot be used.
    """
    return _BUILT_IN[name] if name in _BUILT_IN else _offered(name)


@cache
def _offered(name: str) -> Strategy:
    """The strategy of a package. Its module must exist, or agents would train before a worker finds out that it does not."""
    try:
        offered = load_plugin(STRATEGY_GROUP, name, Strategy)
        require_module(offered.module)
    except LookupError:
        raise PluginUnusable(f"there is no strategy {name!r}: choose one of {', '.join(strategies())}") from None
    except PluginFault as fault:
        raise PluginUnusable(f"the strategy {name!r} cannot be used: {fault}") from fault
    if offered.name != name:
        raise PluginUnusable(f"the entry point {name!r} offers a strategy named {offered.name!r}: name both alike")
    for option in offered.options:
        if option not in StrategyOptions.model_fields:
            raise PluginUnusable(f"the strategy {name!r} names the option {option!r}, which runs do not have")
    return offered
