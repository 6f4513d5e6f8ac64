"""The methods by their names; docs/methods.md says what each is, with its source."""

from collections.abc import Mapping

from pydantic import JsonValue

from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.baselines import central, local
from flexlora_simulation.methods.changes import (
    Change,
    largest_rank,
    own_ranks,
    smallest_rank,
    whole_view,
    with_run,
    with_training,
)
from flexlora_simulation.methods.plan import Method, Plan
from flexlora_simulation.methods.slora import slora


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


def _rule(strategy: str, ranks: Change = own_ranks, **options: JsonValue) -> Method:
    """A strategy with its options, at these ranks."""

    def apply(experiment: Experiment) -> Plan:
        return Plan((with_run(ranks(experiment), strategy=strategy, strategy_options=options or None),))

    return apply


def _host(optimizer: str, strategy: str, ranks: Change) -> Method:
    """A federation whose participants train with this optimizer."""

    def apply(experiment: Experiment) -> Plan:
        return _rule(strategy, ranks)(with_training(experiment, optimizer=optimizer))

    return apply


_RESIDUAL = "flexlora-residual"
_METHODS: Mapping[str, Method] = {
    "local": local,
    "bucket": _rule("fedavg", smallest_rank),
    "flexlora": _rule("flexlora"),
    "flexlora-residual": _rule(_RESIDUAL),
    **{f"leak {g:g}": _rule(_RESIDUAL, leak=g) for g in (0.03, 0.1, 0.3)},
    **{f"shrink {kappa:g}": _rule(_RESIDUAL, shrink=kappa) for kappa in (0.3, 0.5)},
    "energy 0.95": _rule("flexlora", energy=0.95),
    "residual, energy 0.95": _rule(_RESIDUAL, energy=0.95),
    "view": _rule(_RESIDUAL, whole_view),
    "view, leak 0.1": _rule(_RESIDUAL, whole_view, leak=0.1),
    "fedsvd": _rule("fedsvd"),
    "raflora": _rule("raflora"),
    "flora": _rule("flora"),
    "hetlora": _rule("hetlora"),
    "hetlora, by norm": _rule("hetlora", weighting="norm"),
    "ffa": _rule("ffa", smallest_rank),
    "rolora": _rule("rolora", smallest_rank),
    "fedavg": _host("sgd", "fedavg", smallest_rank),
    "fedavg, flexlora": _host("sgd", "flexlora", own_ranks),
    "fedit": _host("adamw", "fedavg", smallest_rank),
    "fedit, flexlora": _host("adamw", "flexlora", own_ranks),
    "slora": slora("fedavg", smallest_rank),
    "slora, flexlora": slora("flexlora", own_ranks),
    "oracle": _rule("flexlora", largest_rank),
    "central": central,
}
