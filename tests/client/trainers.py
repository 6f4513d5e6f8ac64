"""Training loops to plug in: one that needs no model, and ones that go wrong."""

import os
import signal
from pathlib import Path

from safetensors.torch import load_file, save_file

from flexlora_client.training.contract import ADAPTER_FILE, Job, Outcome
from flexlora_client.training.errors import DivergedError


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
    """Dies in the middle of training the first time (a file tells), trains the second time."""

    def train(self, job: Job) -> Outcome:
        mark = Path(os.environ["KILLED_MARK"])
        (job.output / "half.safetensors").write_bytes(b"half")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), getattr(signal, os.environ.get("KILLED_SIGNAL", "SIGKILL")))
            signal.pause()
        return Nudge().train(job)


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
