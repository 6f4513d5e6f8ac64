"""Who of the participants takes part: all, one alone, or one with the examples of all."""

from collections.abc import Sequence
from dataclasses import replace

from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment, Resource
from flexlora_simulation.population.partition import Part

POOLED = "all-participants"  # who has the examples of all

Dealt = tuple[Part, Resource]


def who_trains(dealt: Sequence[Dealt], experiment: Experiment) -> Sequence[Dealt]:
    """The participants of the experiment: `dealt`, or what `only` or `pooled` make of them.

    only: that one, and the unseen ones as if they afforded what it does. pooled: one with the examples of all that are seen, at
    the largest of their ranks; they train no more, and keep what is held out of theirs, to be measured on.

    Raises:
        ExperimentError: nobody is named so, or both are asked for.
    """
    if experiment.only is not None and experiment.pooled:
        raise ExperimentError("only: it names one participant, pooled takes all; leave one of them out")
    if experiment.only is not None:
        return _only(dealt, experiment.only)
    return _pooled(dealt) if experiment.pooled else dealt


def _only(dealt: Sequence[Dealt], name: str) -> list[Dealt]:
    affords = next((resource for part, resource in dealt if part.seen and part.name == name), None)
    if affords is None:
        raise ExperimentError(f"only: no participant that trains is named {name!r}")
    return [(part, affords) for part, _ in dealt if part.name == name or not part.seen]


def _pooled(dealt: Sequence[Dealt]) -> list[Dealt]:
    seen = [(part, resource) for part, resource in dealt if part.seen]
    first, affords = seen[0][0], max((resource for _, resource in seen), key=lambda resource: resource.rank)
    everything = tuple(sorted(index for part, _ in seen for index in part.train))
    measured = [(replace(part, train=(), seen=False) if part.seen else part, resource) for part, resource in dealt]
    return [(replace(first, name=POOLED, train=everything, heldout=()), affords), *measured]
