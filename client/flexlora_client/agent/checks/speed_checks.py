"""What only `doctor` measures: the rank that `--rank auto` chooses, and a few timed steps of the real training."""

import time
from dataclasses import replace

from flexlora_client.agent.checks.findings import Check, Doubt
from flexlora_client.agent.checks.machine_checks import disk
from flexlora_client.agent.checks.model_checks import trained_by
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.files import make_folder
from flexlora_client.training.encoding.packing import Units
from flexlora_client.training.fitting.measure import Participant, choose_rank, refused
from flexlora_client.training.loop.plan import steps_in_epoch
from flexlora_client.training.models.trial_slice import trial_slice, write_trial_slice

STEPS = 4  # the first one, which prepares much, is not counted


def _measured_rank(subject: Subject) -> str:
    """Choose as `--rank auto` does; the next checks go on with that rank. Raises: OutOfMemory, DeviceError, BadInput."""
    if subject.asked_rank is not None:
        return "given with --rank; --rank auto measures which is the largest that fits"
    local, spec = subject.local_trainer, subject.spec
    subject.loaded = None  # measuring loads the base model anew, and there may be no memory for two
    asked = Participant(local.train, local.heldout, local.answers, local.device, local.model_path, local.compute)
    choice = choose_rank(spec, asked, local.models)
    if choice.chosen is None:
        raise refused(choice)
    rank, micro_batch = choice.chosen.rank, choice.chosen.micro_batch
    checkpointing = choice.chosen.gradient_checkpointing
    local.compute = replace(local.compute, micro_batch=micro_batch, gradient_checkpointing=checkpointing)
    subject.asked_rank = rank
    disk(subject)  # was looked at for the lowest rank
    if not subject.trial.exists():
        write_trial_slice(trial_slice(spec, rank), spec, subject.trial)
    return f"rank {rank} is the largest that fits\n{choice.table()}"


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
        next(iter(trained_by(spec)), "slice"),
    )
    if len(ends) < 2:
        return "the training loop tells no steps"
    counted = ends[1:] if len(ends) > 2 else ends
    seconds = (counted[-1] - counted[0]) / (len(counted) - 1)
    packed = subject.encoder is not None and subject.encoder.packing
    count = len(Units(subject.encoder, local.train).lengths) if subject.encoder and packed else len(local.train)
    size = min(training.batch_size * training.gradient_accumulation_steps, count)
    steps = training.epochs * steps_in_epoch(count, training)
    steps = steps if training.max_steps is None else min(steps, training.max_steps)
    speed = f"{size / seconds:.1f} {'packed sequences' if packed else 'examples'} a second"
    predicted = f"{speed}, about {_minutes(steps * seconds)} of training in a round of {steps} steps"
    if steps * seconds > spec.round_timeout:
        return Doubt(
            f"{predicted}, and rounds end after {_minutes(spec.round_timeout)}; use a faster device or fewer examples, "
            "or ask the operator for a longer round_timeout or for max_steps"
        )
    return f"{predicted}, which may take {_minutes(spec.round_timeout)}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 5940 else f"{seconds / 3600:.1f} hours"


SPEED_CHECKS = (
    Check("rank-auto", _measured_rank, needs=("options", "encoding", "disk")),
    Check("speed", _speed, needs=("trainer", "rank-auto")),
)
