"""The participants of an experiment: their parts of the data, and what each affords."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexlora_simulation.experiment import Experiment, Resource
from flexlora_simulation.population.partition import Part, deal
from flexlora_simulation.population.who_trains import who_trains
from flexlora_simulation.workloads.contract import Item


@dataclass(frozen=True)
class Participant:
    """One virtual participant."""

    part: Part
    resource: Resource

    @property
    def name(self) -> str:
        """Its name, unique in the experiment."""
        return self.part.name


def draw_participants(experiment: Experiment, items: Sequence[Item]) -> tuple[Participant, ...]:
    """All participants, the unseen ones last; resources are dealt at random in their shares, to the nearest whole numbers."""
    seed = experiment.seed if experiment.partition.seed is None else experiment.partition.seed
    parts = deal(items, experiment.partition, seed)
    resources = _shared_out(experiment.resources, len(parts))
    order = np.random.default_rng([experiment.seed, 1]).permutation(len(parts))
    dealt = [(part, resources[place]) for part, place in zip(parts, order, strict=True)]
    return tuple(Participant(part, resource) for part, resource in who_trains(dealt, experiment))


def _shared_out(resources: Sequence[Resource], count: int) -> list[Resource]:
    """`count` resources in the shares wanted, by the largest remainders."""
    total = sum(resource.share for resource in resources)
    exact = [count * resource.share / total for resource in resources]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: counts[n] - exact[n])
    for n in by_remainder[: count - sum(counts)]:
        counts[n] += 1
    return [resource for resource, times in zip(resources, counts, strict=True) for _ in range(times)]
