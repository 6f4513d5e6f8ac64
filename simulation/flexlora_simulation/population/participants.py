"""The participants of an experiment: their parts of the data, and what each affords."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flexlora_simulation.experiment import Experiment, Resource
from flexlora_simulation.population.part_file import read_parts
from flexlora_simulation.population.partition import Part, deal
from flexlora_simulation.population.resources import shared_out
from flexlora_simulation.population.who_trains import who_trains
from flexlora_simulation.workloads.contract import Item


@dataclass(frozen=True)
class Participant:
    """One virtual participant. resource: of one that trains; the others are measured at the ranks of the evaluation."""

    part: Part
    resource: Resource

    @property
    def name(self) -> str:
        """Its name, unique in the experiment."""
        return self.part.name


def draw_participants(experiment: Experiment, items: Sequence[Item]) -> tuple[Participant, ...]:
    """All participants, the unseen ones last: the same for the same experiment and items, on every machine.

    Raises:
        ExperimentError: the examples or the resources cannot be dealt so.
    """
    partition = experiment.partition
    if partition.path is not None:
        parts = read_parts(Path(partition.path), len(items))
    else:
        parts = deal(items, partition, experiment.seed if partition.seed is None else partition.seed)
    seen = sum(part.seen for part in parts)
    dealt = shared_out(experiment.resources, seen)
    if experiment.resources_by == "chance":
        places = np.random.default_rng([experiment.seed, 1]).permutation(seen).tolist()
    else:
        by_size = sorted(range(seen), key=lambda number: len(parts[number].train))
        places = sorted(range(seen), key=lambda number: by_size[number])  # the inverse: each one's place among all
    resources = [experiment.resources[dealt[place]] for place in places] + [experiment.resources[0]] * (
        len(parts) - seen
    )
    dealt_parts = list(zip(parts, resources, strict=True))
    return tuple(Participant(part, resource) for part, resource in who_trains(dealt_parts, experiment))
