"""The methods by their names: what each changes in an experiment."""

from collections.abc import Callable, Mapping
from typing import Any

from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment, Resource
from flexlora_simulation.methods.plan import Method, Plan

Ranks = Callable[[Experiment], Experiment]


def method_names() -> tuple[str, ...]:
    """All names, in the order of the tables."""
    return tuple(_METHODS)


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        ExperimentError: there is none, with the names there are.
    """
    try:
        return _METHODS[name]
    except KeyError:
        raise ExperimentError(f"there is no method {name!r}; there are {', '.join(map(repr, _METHODS))}") from None


def _own(experiment: Experiment) -> Experiment:
    return experiment


def _smallest(experiment: Experiment) -> Experiment:
    return _same_rank(experiment, min(resource.rank for resource in experiment.resources))


def _largest(experiment: Experiment) -> Experiment:
    return _same_rank(experiment, _largest_rank(experiment))


def _whole_view(experiment: Experiment) -> Experiment:
    hold = {"hold_rank": _largest_rank(experiment)}
    return _with_resources(experiment, [resource.model_copy(update=hold) for resource in experiment.resources])


def _largest_rank(experiment: Experiment) -> int:
    return max(rank for resource in experiment.resources for rank in (resource.rank, *resource.rank_pattern.values()))


def _same_rank(experiment: Experiment, rank: int) -> Experiment:
    change: dict[str, Any] = {"rank": rank, "hold_rank": None, "rank_pattern": {}}
    return _with_resources(experiment, [resource.model_copy(update=change) for resource in experiment.resources])


def _with_resources(experiment: Experiment, resources: list[Resource]) -> Experiment:
    return experiment.model_copy(update={"resources": tuple(resources)})


def _rule(strategy: str, ranks: Ranks = _own, **options: Any) -> Method:
    """A strategy with its options, at these ranks."""

    def apply(experiment: Experiment) -> Plan:
        changed = ranks(experiment)
        run = {name: value for name, value in changed.run.items() if name not in {"strategy", "strategy_options"}}
        run["strategy"] = strategy
        if options:
            run["strategy_options"] = dict(options)
        return Plan((changed.model_copy(update={"run": run}),))

    return apply


_RESIDUAL = "flexlora-residual"
_METHODS: Mapping[str, Method] = {
    "bucket": _rule("fedavg", _smallest),
    "flexlora": _rule("flexlora"),
    "flexlora-residual": _rule(_RESIDUAL),
    **{f"leak {g:g}": _rule(_RESIDUAL, leak=g) for g in (0.03, 0.1, 0.3)},
    **{f"shrink {kappa:g}": _rule(_RESIDUAL, shrink=kappa) for kappa in (0.3, 0.5)},
    "energy 0.95": _rule("flexlora", energy=0.95),
    "residual, energy 0.95": _rule(_RESIDUAL, energy=0.95),
    "view": _rule(_RESIDUAL, _whole_view),
    "view, leak 0.1": _rule(_RESIDUAL, _whole_view, leak=0.1),
    "fedsvd": _rule("fedsvd"),
    "raflora": _rule("raflora"),
    "flora": _rule("flora"),
    "hetlora": _rule("hetlora"),
    "ffa": _rule("ffa", _smallest),
    "rolora": _rule("rolora", _smallest),
    "oracle": _rule("flexlora", _largest),
}
