"""The agent's own training loop, for causal language models and sequence classification."""

import time
from collections.abc import Sequence

import torch

from flexlora_client.errors import DataError
from flexlora_client.training.contract import Job, Outcome
from flexlora_client.training.data.examples import Example, Labelled
from flexlora_client.training.encoding.encoder import Encoded, Encoder
from flexlora_client.training.loop.training_loop import FitResult, fit, plan_steps
from flexlora_client.training.models.devices import trim_heap
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.placing import trained_tensors
from flexlora_client.training.models.slice_files import read_slice, write_slice
from flexlora_shared.messages.tasks import Trainable


class StandardTrainer:
    """Trains a slice with AdamW; keeps the base model loaded from round to round.

    Give it the `Models` that `evaluate` uses too, and one base model serves both. The number of CPU threads is the
    caller's choice (`torch.set_num_threads`). On the CPU, the same job gives the same bytes.
    """

    supports: tuple[Trainable, ...] = ("slice", "B", "fresh")

    def __init__(self, models: Models | None = None) -> None:
        self._models = models or Models()

    def train(self, job: Job) -> Outcome:
        """Train one round; see `contract.Trainer`.

        Metrics: train_loss (mean over all predicted tokens, or examples of a classifier, as they were trained),
        train_steps, train_predictions, train_seconds (without loading).

        Raises:
            DataError: no examples, or some that do not suit the run's task or have nothing to learn.
            ModelError, AdapterError, DeviceError: see `Models.with_slice`.
            DivergedError: a loss or a trained tensor is not finite.
        """
        check_task(job.train, job.spec.model.task_type == "SEQ_CLS")
        loaded = self._start(job)
        steps = plan_steps([example.characters for example in job.train], job.spec.training, job.round)
        used = sorted({index for step in steps for index in step})
        encoder = Encoder(loaded.tokenizer, loaded.max_length)
        encoded = {index: encoder.encode(job.train[index]) for index in used}
        began = time.monotonic()
        fitted = _fit_seeded(loaded, encoded, steps, job)
        seconds = time.monotonic() - began
        trim_heap()  # writing takes a copy, which must not come on top of the optimizer's freed state
        adapter = write_slice(trained_tensors(loaded.model), job.adapter, job.spec, job.output)
        metrics = {"train_loss": fitted.loss, "train_steps": float(len(steps)), "train_seconds": seconds}
        metrics |= {"train_predictions": float(fitted.predictions)}
        return Outcome(adapter, len(used), metrics, fitted.compute if fitted.compute != job.compute else None)

    def _start(self, job: Job) -> LoadedModel:
        """The loaded model: trained tensors ready to train, the rest frozen."""
        served, spec = read_slice(job.adapter, job.spec), job.spec
        if job.trainable == "fresh":
            start = fresh_adapter(served, spec, job.round, job.participant)
            return self._models.with_slice(
                start, spec, job.device, job.model_path, base_slice=served, compute=job.compute
            )
        trains_A = job.trainable == "slice"
        return self._models.with_slice(served, spec, job.device, job.model_path, trains_A=trains_A, compute=job.compute)


def check_task(examples: Sequence[Example], classifies: bool) -> None:
    """Refuse examples of the other task. Raises: DataError."""
    if not examples:
        raise DataError("there are no examples; give a data file with at least one.")
    if any(isinstance(example, Labelled) != classifies for example in examples):
        expected = "text and label" if classifies else "prompt and completion, messages or text"
        raise DataError(f"the examples are of another task than the run's; it learns from {expected}.")


def _fit_seeded(
    loaded: LoadedModel, encoded: dict[int, Encoded], steps: Sequence[Sequence[int]], job: Job
) -> FitResult:
    """Seed the global random generators, which dropout uses, for this round; restore them afterwards."""
    training = job.spec.training
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(training.seed + 1_000_003 * job.round)
        return fit(loaded, encoded, steps, training, job.progress)
