"""What a method makes of an experiment: the experiments to run, in which order, and what they have to do with each other."""

from collections.abc import Callable
from dataclasses import dataclass

from flexlora_simulation.experiment import Experiment


@dataclass(frozen=True)
class Plan:
    """The experiments of one method, each of another name.

    stages: in the order in which they are run; usually one. Each later stage starts from the last adapter of the one before it:
        `run_plan` says so to it. What a method is judged by is its last stage.
    alone: the stages have nothing to do with each other: each is one participant, which trains by itself. What the method is
        judged by is the mean over the stages.
    """

    stages: tuple[Experiment, ...]
    alone: bool = False


Method = Callable[[Experiment], Plan]
