"""How long participants take, and who vanishes: drawn from the experiment's seed, the participant, the round and the attempt.

Every draw depends on nothing else, so that an experiment that is resumed draws the same.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from flexlora_shared.messages.runs import TrainingSpec
from flexlora_shared.messages.tasks import Task
from flexlora_simulation.experiment import Timing
from flexlora_simulation.population.participants import Participant


@dataclass(frozen=True)
class VirtualTime:
    """The draws of one experiment."""

    timing: Timing
    seed: int

    def is_available(self, participant: Participant, round: int, attempt: int) -> bool:
        """Whether it is there when the round opens."""
        return self._generator("available", participant.name, round, attempt).random() < self.timing.available

    def vanishes(self, participant: Participant, round: int, attempt: int) -> bool:
        """Whether it never sends what it was asked for in this round."""
        return self._generator("dropout", participant.name, round, attempt).random() < self.timing.dropout

    def seconds(self, participant: Participant, task: Task) -> float:
        """From its assignment until its update has arrived: the slice's download, the steps, the update's upload."""
        own = self._generator("speed", participant.name).normal(0.0, self.timing.spread)
        now = self._generator("round", participant.name, task.round, task.attempt).normal(0.0, self.timing.jitter)
        step = self.timing.step_seconds / participant.resource.speed * math.exp(own + now)
        rate = self.timing.bytes_per_second
        transfers = 0.0 if rate is None else 2 * task.adapter.size / rate
        return transfers + step * steps_of(task.spec.training, len(participant.part.train))

    def _generator(self, *of: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.seed, *of)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16]))


def steps_of(training: TrainingSpec, examples: int) -> int:
    """Optimizer steps in a round, packing and best epochs aside."""
    batch = training.batch_size * training.gradient_accumulation_steps
    steps = training.epochs * math.ceil(examples / batch)
    return steps if training.max_steps is None else min(steps, training.max_steps)
