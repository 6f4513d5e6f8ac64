"""The training loop: AdamW over shuffled batches, with what surrounds its steps.

Our own loop rather than `transformers.Trainer`: a round is often a few dozen steps, for which the Trainer's set-up
(accelerate, callbacks, argument parsing, a run directory) takes longer than the training, and what a federated round
needs is little: the same shuffle for the same seed and round, losses weighted by predicted tokens across accumulated
batches, a learning rate that follows the run, and an end at the round's deadline.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flexlora_client.errors import DataError, DivergedError, Stopped
from flexlora_client.training.contract import Compute, Job
from flexlora_client.training.encoding.encoder import Encoded
from flexlora_client.training.encoding.packing import Units
from flexlora_client.training.loop.best_epoch import BestEpoch
from flexlora_client.training.loop.checkpoints import Checkpoints
from flexlora_client.training.loop.optimizer_state import restore_optimizer, save_optimizer
from flexlora_client.training.loop.plan import Steps
from flexlora_client.training.loop.schedule import learning_rate
from flexlora_client.training.loop.snapshots import copied, put_back, random_state, set_random_state
from flexlora_client.training.loop.step import Stepper
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_client.training.models.replicas import set_mode, zero_grad


@dataclass(frozen=True)
class FitResult:
    """How training went; of a training that went on from a checkpoint, all of it."""

    loss: float  # nats, mean over all predictions
    predictions: int
    steps: int  # fewer than planned where the deadline ended training; those without anything to learn count
    seconds: float
    selected_epoch: int | None  # whose tensors were taken; None: the last step's
    compute: Compute  # how it was computed in the end


class _Fit:
    """A training under way: everything that a checkpoint saves and brings back."""

    def __init__(self, loaded: LoadedModel, stepper: Stepper, selection: BestEpoch | None, units: Units) -> None:
        self._devices = [replica.device for replica in loaded.all_replicas]
        self._stepper, self._selection, self._units = stepper, selection, units
        self.done, self.loss, self.predictions = 0, 0.0, 0
        self._seconds, self._began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._seconds + time.monotonic() - self._began

    def count(self, loss: float, predictions: int) -> None:
        self.done, self.predictions = self.done + 1, self.predictions + predictions
        self.loss += loss * predictions

    def state_dict(self) -> dict[str, Any]:
        return {
            "tally": (self.done, self.loss, self.predictions, self.seconds),
            "empty": sorted(self._units.empty),
            "tensors": copied(self._stepper.parameters),
            "stepper": copied(self._stepper.state_dict()),
            "random": random_state(self._devices),
            "selection": None if self._selection is None else self._selection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done, self.loss, self.predictions, self._seconds = state["tally"]
        self._units.empty.update(state["empty"])
        put_back(state["tensors"], self._stepper.parameters)
        self._stepper.load_state_dict(state["stepper"])
        set_random_state(state["random"], self._devices)
        if self._selection is not None:
            self._selection.load_state_dict(state["selection"])


def fit(
    loaded: LoadedModel,
    units: Units,
    heldout: Iterable[Encoded],
    steps: Steps,
    job: Job,
    checkpoints: Checkpoints,
    per_epoch: int,
) -> FitResult:
    """Train the model's trainable tensors in place; `heldout` is empty unless the run selects the best epoch.

    `per_epoch` is the number of steps in an epoch. Examples are encoded when their step comes: those with nothing to learn are
    left out of it, and a step of such examples alone changes nothing, but counts, so that the learning rate's way is known.

    Raises:
        DataError: no example has anything to learn.
        DivergedError: a loss is not finite.
        Stopped: the job asked for it; a checkpoint is written.
    """
    stepper = Stepper(loaded, job.spec.training)
    restore_optimizer(stepper, job)
    selection = None
    if next(iter(heldout), None) is not None:
        selection = BestEpoch(loaded, stepper, heldout)
    under_way = _Fit(loaded, stepper, selection, units)
    state = checkpoints.read()
    if state is not None:
        under_way.load_state_dict(state)
        job.notice(f"training goes on after step {under_way.done} of {len(steps)}, where a checkpoint was written")
    set_mode(loaded, train=True)
    try:
        _train(under_way, stepper, selection, units, steps, job, checkpoints, per_epoch)
    finally:
        zero_grad(loaded)
        set_mode(loaded, train=False)
    if not under_way.predictions:
        raise DataError(f"no example has a token to learn; give them more text. The first: {units.reason}")
    if selection is not None:
        selection.restore()
    save_optimizer(stepper, job)
    mean = under_way.loss / under_way.predictions
    epoch = None if selection is None else selection.epoch
    return FitResult(mean, under_way.predictions, under_way.done, under_way.seconds, epoch, stepper.compute)


def _train(
    under_way: _Fit,
    stepper: Stepper,
    selection: BestEpoch | None,
    units: Units,
    steps: Steps,
    job: Job,
    checkpoints: Checkpoints,
    per_epoch: int,
) -> None:
    began, before = time.monotonic(), under_way.done
    while under_way.done < len(steps):
        number = under_way.done + 1
        stepper.set_learning_rate(learning_rate(job.spec, job.round, number, len(steps)))
        examples = units.encoded(steps[number - 1])
        loss, predictions = stepper.step(examples) if examples else (0.0, 0)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {number} of {len(steps)}; lower the learning rate of the run."
            )
        under_way.count(loss, predictions)
        job.progress(number, len(steps), loss)
        mean = (time.monotonic() - began) / (number - before)
        last = number == len(steps)
        if under_way.predictions:  # something is to be uploaded
            last = last or _is_over(job, number, mean + (selection.seconds if selection is not None else 0.0))
        if selection is not None and (last or number % per_epoch == 0):
            selection.look(-(-number // per_epoch))
        if last:
            return
        if job.stop():
            written = checkpoints.write(under_way.state_dict())
            kept = "a checkpoint is kept" if written else "no checkpoint is kept"
            raise Stopped(f"training stopped after step {number} of {len(steps)}, {kept}.")
        if checkpoints.due():
            checkpoints.write(under_way.state_dict())


def _is_over(job: Job, done: int, seconds: float) -> bool:
    """Whether another step, which takes so long, would end after the deadline, or is one too many."""
    if job.max_steps is not None and done >= job.max_steps:
        return True
    return job.deadline is not None and time.time() + seconds > job.deadline
