"""Changes of an experiment that methods are made of: who trains at which rank, and fields of the run."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import JsonValue

from flexlora_simulation.experiment import Experiment, Resource

Change = Callable[[Experiment], Experiment]


def own_ranks(experiment: Experiment) -> Experiment:
    """Everybody at what it affords."""
    return experiment


def smallest_rank(experiment: Experiment) -> Experiment:
    """Everybody at the smallest rank that anybody has in any module."""
    return with_rank(experiment, min(_ranks(experiment)))


def largest_rank(experiment: Experiment) -> Experiment:
    """Everybody at the largest rank that anybody has in any module."""
    return with_rank(experiment, max(_ranks(experiment)))


def whole_view(experiment: Experiment) -> Experiment:
    """Everybody trains what it affords, and holds the largest rank."""
    return _with_resources(experiment, lambda one: one.model_copy(update={"hold_rank": max(_ranks(experiment))}))


def nothing_held(experiment: Experiment) -> Experiment:
    """Everybody holds what it trains."""
    return _with_resources(experiment, lambda one: one.model_copy(update={"hold_rank": None}))


def with_rank(experiment: Experiment, rank: int) -> Experiment:
    """Everybody at this rank in all modules."""

    def changed(one: Resource) -> Resource:
        others = one.model_dump(exclude={"rank", "hold_rank", "rank_pattern", "attention_rank"})
        return Resource.model_validate({**others, "rank": rank})

    return _with_resources(experiment, changed)


def with_run(experiment: Experiment, **fields: JsonValue) -> Experiment:
    """Other fields of the run; one that is None is left out."""
    kept = {name: value for name, value in {**experiment.run, **fields}.items() if value is not None}
    return experiment.model_copy(update={"run": kept})


def with_training(experiment: Experiment, **fields: JsonValue) -> Experiment:
    """Other hyper-parameters of local training."""
    given = experiment.run.get("training")
    return with_run(experiment, training={**(given if isinstance(given, Mapping) else {}), **fields})


def _ranks(experiment: Experiment) -> set[int]:
    return {rank for one in experiment.resources for rank in ranks_of(one)}


def ranks_of(resource: Resource) -> set[int]:
    """The ranks at which modules are trained."""
    attention: Any = getattr(resource, "attention_rank", None)
    return {resource.rank, *resource.rank_pattern.values(), *([] if attention is None else [attention])}


def _with_resources(experiment: Experiment, changed: Callable[[Resource], Resource]) -> Experiment:
    return experiment.model_copy(update={"resources": tuple(changed(one) for one in experiment.resources)})
