"""Which examples make each optimizer step of a round."""

import random
from collections.abc import Sequence

from flexlora_shared.messages.runs import TrainingSpec

SHUFFLE_WINDOW_BATCHES = 4
Steps = Sequence[Sequence[int]]  # the examples of each optimizer step, by index


def plan_steps(lengths: Sequence[int], training: TrainingSpec, round: int) -> Steps:
    """Which examples, of these lengths, make each optimizer step; the same for the same seed and round.

    Shuffled, then sorted by length within every WINDOW batches and those batches shuffled again: examples of like
    length share a batch, which saves padding (1.8 times the computation on short questions in batches of 16).
    """
    size = training.batch_size * training.gradient_accumulation_steps
    steps: list[list[int]] = []
    for epoch in range(training.epochs):
        order = _shuffled(lengths, training.batch_size, random.Random(f"{training.seed} {round} {epoch}"))
        steps.extend(order[start : start + size] for start in range(0, len(order), size))
        if training.max_steps is not None and len(steps) >= training.max_steps:
            return steps[: training.max_steps]
    return steps


def steps_in_epoch(count: int, training: TrainingSpec) -> int:
    """Optimizer steps that `count` examples make; the last step of an epoch may be short."""
    return -(-count // (training.batch_size * training.gradient_accumulation_steps))


def _shuffled(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    order = list(range(len(lengths)))
    rng.shuffle(order)
    result: list[int] = []
    for start in range(0, len(order), SHUFFLE_WINDOW_BATCHES * batch_size):
        window = sorted(order[start : start + SHUFFLE_WINDOW_BATCHES * batch_size], key=lambda index: lengths[index])
        batches = [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        rest = (
            batches.pop() if len(batches[-1]) < batch_size else []
        )  # stays last: a short batch would shift those after it
        rng.shuffle(batches)
        result.extend(index for batch in (*batches, rest) for index in batch)
    return result
