"""How long participants take, and who vanishes: drawn from the experiment's seed, the participant, the round and the attempt.

Every draw depends on nothing else, so that an experiment that is resumed draws the same.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from flexlora_client.agent.round_time import RoundTime
from flexlora_shared.messages.runs import TrainingSpec
from flexlora_shared.messages.tasks import Task
from flexlora_simulation.experiment import Timing
from flexlora_simulation.population.participants import Participant


@dataclass(frozen=True)
class Plan:
    """A participant's way through a round, in seconds from its assignment.

    trained: its update is announced. arrived: all of it has been sent. max_steps: where fewer are trained than the run asks for.
    """

    trained: float
    arrived: float
    max_steps: int | None


@dataclass(frozen=True)
class VirtualTime:
    """The draws of one experiment."""

    timing: Timing
    seed: int

    def is_available(self, participant: Participant, round: int, attempt: int, waits: int = 0) -> bool:
        """Whether it is there when the round opens, and after so many more waits for participants."""
        if self.timing.available == 1:
            return True
        drawn_for = ("available", participant.name, round, attempt, *((waits,) if waits else ()))
        return self._generator(*drawn_for).random() < self.timing.available

    def vanishes(self, participant: Participant, round: int, attempt: int) -> bool:
        """Whether it never sends what it was asked for in this round."""
        if self.timing.dropout == 0:
            return False
        return self._generator("dropout", participant.name, round, attempt).random() < self.timing.dropout

    def plan(self, participant: Participant, task: Task, *, shortens: bool = True) -> Plan:
        """The slice's download, the steps and the update's upload, which is as large.

        shortens: as the agent's own training loop does, it takes only the steps that end in time before the round's deadline,
        one at least.
        """
        transfer = 0.0 if self.timing.bytes_per_second is None else task.adapter.size / self.timing.bytes_per_second
        step, planned = self._step_seconds(participant, task), steps_of(task.spec.training, len(participant.part.train))
        left = RoundTime(upload=transfer).training_seconds(task.spec.round_timeout - transfer, task.adapter.size)
        fitting = max(1, math.floor(left / step)) if shortens else planned
        trained = transfer + step * min(planned, fitting)
        return Plan(trained, trained + transfer, fitting if fitting < planned else None)

    def _step_seconds(self, participant: Participant, task: Task) -> float:
        own = self._generator("speed", participant.name).normal(0.0, self.timing.spread)
        now = self._generator("round", participant.name, task.round, task.attempt).normal(0.0, self.timing.jitter)
        return self.timing.step_seconds / participant.resource.speed * math.exp(own + now)

    def _generator(self, *of: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.seed, *of)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16]))


def steps_of(training: TrainingSpec, examples: int) -> int:
    """Optimizer steps in a round, packing and best epochs aside."""
    batch = training.batch_size * training.gradient_accumulation_steps
    steps = training.epochs * math.ceil(examples / batch)
    return steps if training.max_steps is None else min(steps, training.max_steps)
