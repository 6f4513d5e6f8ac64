"""A few timed steps of the real training, and from them how long a round takes here."""

import math
import time
from dataclasses import replace

from flexlora_client.agent.checks.findings import Check, Doubt
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.files import make_folder

STEPS = 4  # the first one, which prepares much, is not counted


def _speed(subject: Subject) -> str | Doubt:
    spec, local = subject.spec, subject.local_trainer
    training = spec.training
    if not local.train:
        return "there is nothing to train on"
    short = spec.model_copy(update={"training": training.model_copy(update={"max_steps": STEPS})})
    request = replace(subject.request, spec=short)
    ends = [time.monotonic()]
    local.fit(
        request,
        1,
        subject.trial,
        make_folder(subject.folder / "output"),
        lambda step, total, loss: ends.append(time.monotonic()),
    )
    if len(ends) < 2:
        return "the training loop tells no steps"
    counted = ends[1:] if len(ends) > 2 else ends
    seconds = (counted[-1] - counted[0]) / (len(counted) - 1)
    size = min(training.batch_size * training.gradient_accumulation_steps, len(local.train))
    steps = training.epochs * math.ceil(len(local.train) / size)
    steps = steps if training.max_steps is None else min(steps, training.max_steps)
    speed = f"{size / seconds:.1f} examples a second"
    predicted = f"{speed}, about {_minutes(steps * seconds)} of training in a round of {steps} steps"
    if steps * seconds > spec.round_timeout:
        return Doubt(
            f"{predicted}, and rounds end after {_minutes(spec.round_timeout)}; use a faster device or fewer examples, "
            "or ask the operator for a longer round_timeout or for max_steps"
        )
    return f"{predicted}, which may take {_minutes(spec.round_timeout)}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 5940 else f"{seconds / 3600:.1f} hours"


SPEED_CHECKS = (Check("speed", _speed, needs=("encoding", "disk")),)
