"""Training loops to plug in: one that needs no model, and ones that go wrong."""

import os
import signal
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from flexlora_client import credentials
from flexlora_client.cli.options import ConnectionOptions, as_participant
from flexlora_client.errors import DivergedError
from flexlora_client.training.contract import ADAPTER_FILE, Job, Outcome
from flexlora_client.training.loop.standard import StandardTrainer


class Nudge:
    """Adds a little to every tensor: a real update without a model. Remembers its jobs."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def train(self, job: Job) -> Outcome:
        self.jobs.append(job)
        trained = {key: tensor + 0.01 for key, tensor in load_file(job.adapter / ADAPTER_FILE).items()}
        save_file(trained, job.output / ADAPTER_FILE)
        job.progress(1, 1, 0.5)
        return Outcome(
            job.output / ADAPTER_FILE, len(job.train), {"train_loss": 0.5, "Odd Name": 1.0, "nan": float("nan")}
        )


class Raises:
    """Fails as a stranger's code does."""

    def train(self, job: Job) -> Outcome:
        raise ZeroDivisionError("no batches")


class Diverges:
    """Fails with a sentence of its own."""

    def train(self, job: Job) -> Outcome:
        raise DivergedError("the loss is not finite; lower the learning rate.")


class Killed:
    """Is sent signals in the middle of training the first time (a file tells); trains if it lives."""

    def train(self, job: Job) -> Outcome:
        mark = Path(os.environ["KILLED_MARK"])
        (job.output / "half.safetensors").write_bytes(b"half")
        if not mark.exists():
            mark.touch()
            for _ in range(int(os.environ.get("KILLED_TIMES", "1"))):
                signal.raise_signal(getattr(signal, os.environ.get("KILLED_SIGNAL", "SIGKILL")))
        return Nudge().train(job)


class OftenSaved(StandardTrainer):
    """The agent's own loop, with a checkpoint as often as writing one leaves time to train."""

    supports = StandardTrainer.supports

    def __init__(self) -> None:
        super().__init__(checkpoint_interval=0.0)


class Elsewhere:
    """Writes its adapter where it should not."""

    def train(self, job: Job) -> Outcome:
        return Outcome(job.adapter / ADAPTER_FILE, 1, {})


class NoExamples(Nudge):
    """Says that it trained on nothing."""

    def train(self, job: Job) -> Outcome:
        return Outcome(super().train(job).adapter, 0, {})


class WrongShapes:
    """Writes tensors of another rank."""

    def train(self, job: Job) -> Outcome:
        tensors = {key: tensor[:1].contiguous() for key, tensor in load_file(job.adapter / ADAPTER_FILE).items()}
        save_file(tensors, job.output / ADAPTER_FILE)
        return Outcome(job.output / ADAPTER_FILE, 1, {})


class Returns(Nudge):
    """Trains, then says something else about it: fields of the outcome, or `whole` instead of it."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def train(self, job: Job) -> Outcome:
        fields = vars(super().train(job)) | self._fields
        return fields["whole"] if "whole" in fields else Outcome(**fields)


class Renames(Nudge):
    """Writes its adapter under a name of its own."""

    def train(self, job: Job) -> Outcome:
        made = super().train(job)
        return Outcome(made.adapter.rename(job.output / "mine.safetensors"), 1, {})


class Rotates(Nudge):
    """Has the participant's key replaced and the new one used, so that the agent's own has ended."""

    def train(self, job: Job) -> Outcome:
        if not self.jobs:
            connection = ConnectionOptions()
            identity = credentials.load(connection.folder)
            with as_participant(connection) as api:
                key = api.rotate_key().api_key
            credentials.save(connection.folder, identity.model_copy(update={"api_key": key}))
            with as_participant(connection) as api:
                api.runs()
        return super().train(job)
