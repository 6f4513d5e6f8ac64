"""The learning rate over the whole run: constant, linear or cosine, after a linear warm-up.

Before optimizer step i of n (from 1) in round r of R the run's progress is p = (r - 1 + (i - 1) / n) / R, and with the
warm-up's share w the learning rate is the run's times

    p / w                                 where p < w
    1                                     constant
    (1 - p) / (1 - w)                     linear
    (1 + cos(pi (p - w) / (1 - w))) / 2   cosine

Where every round has n steps, these are the factors of `transformers.get_*_schedule_with_warmup` over R n steps with
w R n of them warm-up. A round of more or fewer steps than others moves the run by 1/R all the same, so participants with
unequal numbers of examples follow one schedule, and a round that somebody misses leaves no trace in the next.
"""

import math

from flexlora_shared.messages.runs import RunSpec


def learning_rate(spec: RunSpec, round: int, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 1) of `steps` in round `round` (from 1)."""
    return spec.training.learning_rate * _factor(spec, (round - 1 + (step - 1) / steps) / spec.rounds)


def _factor(spec: RunSpec, progress: float) -> float:
    training = spec.training
    if progress < training.warmup:
        return progress / training.warmup
    after = (progress - training.warmup) / (1 - training.warmup)
    if training.schedule == "linear":
        return max(0.0, 1 - after)
    if training.schedule == "cosine":
        return max(0.0, (1 + math.cos(math.pi * after)) / 2)
    return 1.0
