"""The agent's own training loop, for causal language models and sequence classification."""

from collections.abc import Iterable

import torch

from flexlora_client.training.contract import Job, Outcome
from flexlora_client.training.data.of_task import check_task
from flexlora_client.training.encoding.encoder import Encoded, Encoder
from flexlora_client.training.encoding.packing import Sequences, Units
from flexlora_client.training.loop.checkpoints import INTERVAL_S, Checkpoints
from flexlora_client.training.loop.plan import Steps, plan_steps, steps_in_epoch
from flexlora_client.training.loop.training_loop import FitResult, fit
from flexlora_client.training.models.devices import trim_heap
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.held_slice import read_frozen
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.placing import trained_tensors
from flexlora_client.training.models.slice_files import read_slice, write_slice
from flexlora_shared.messages.tasks import Trainable


class StandardTrainer:
    """Trains a slice with AdamW; keeps the base model loaded from round to round.

    Give it the `Models` that `evaluate` uses too, and one base model serves both. The number of CPU threads is the
    caller's choice (`torch.set_num_threads`). On the CPU, the same job gives the same bytes.
    """

    supports: tuple[Trainable, ...] = ("slice", "B", "A", "prefix", "fresh")

    def __init__(self, models: Models | None = None, checkpoint_interval: float = INTERVAL_S) -> None:
        """`checkpoint_interval`: seconds of training between checkpoints, at least."""
        self._models = models or Models()
        self._checkpoint_interval = checkpoint_interval

    def train(self, job: Job) -> Outcome:
        """Train one round; see `contract.Trainer`.

        Metrics: train_loss (mean over all predicted tokens, or examples of a classifier, as they were trained),
        train_steps, train_steps_planned (more than those where the deadline ended training), train_predictions,
        train_seconds (without loading); selected_epoch where the run takes the best one.

        Raises:
            DataError: no examples, or some that do not suit the run's task or have nothing to learn.
            ModelError, AdapterError, DeviceError: see `Models.with_slice`.
            DivergedError: a loss or a trained tensor is not finite.
            Stopped: `job.stop` asked for it; a checkpoint lies in `job.checkpoints`.
        """
        check_task(job.train, job.spec.model)
        loaded = self._start(job)
        encoder = Encoder.of(job.spec, loaded.preprocessor, loaded.max_length)
        units = Units(encoder, job.train)
        steps = plan_steps(units.lengths, job.spec.training, job.round)
        heldout = _heldout_to_select_by(job, encoder)
        checkpoints = Checkpoints(job, self._checkpoint_interval)
        per_epoch = steps_in_epoch(len(units.lengths), job.spec.training)
        fitted = _fit_seeded(loaded, units, heldout, steps, job, checkpoints, per_epoch)
        if units.empty:
            left = f"{len(units.empty)} of {len(job.train)} examples were left out of training"
            job.notice(f"{left}; the first: {units.reason.rstrip('.')}" if units.reason else left)
        trim_heap()  # writing takes a copy, which must not come on top of the optimizer's freed state
        job.before_writing()
        adapter = write_slice(trained_tensors(loaded.model), job.adapter, job.spec, job.output)
        trained_on = units.sources(index for step in steps[: fitted.steps] for index in step)
        compute = fitted.compute if fitted.compute != job.compute else None
        return Outcome(adapter, len(trained_on), _metrics(fitted, len(steps)), compute)

    def _start(self, job: Job) -> LoadedModel:
        """The loaded model: trained tensors ready to train, the rest frozen."""
        served, spec = read_slice(job.adapter, job.spec), job.spec
        if job.trainable == "fresh":
            start = fresh_adapter(served, spec, job.round, job.participant, job.train)
            return self._models.with_slice(
                start, spec, job.device, job.model_path, base_slice=served, compute=job.compute
            )
        return self._models.with_slice(
            served,
            spec,
            job.device,
            job.model_path,
            base_slice=None if job.frozen is None else read_frozen(job.frozen, spec),
            trains_A=job.trainable != "B",
            trains_B=job.trainable != "A",
            compute=job.compute,
        )


def _metrics(fitted: FitResult, planned: int) -> dict[str, float]:
    metrics = {
        "train_loss": fitted.loss,
        "train_steps": float(fitted.steps),
        "train_steps_planned": float(planned),
        "train_seconds": fitted.seconds,
        "train_predictions": float(fitted.predictions),
    }
    return metrics if fitted.selected_epoch is None else metrics | {"selected_epoch": float(fitted.selected_epoch)}


def _heldout_to_select_by(job: Job, encoder: Encoder) -> Iterable[Encoded]:
    """The held-out examples where the run takes the best epoch; empty: it takes the last."""
    if job.spec.training.select == "last":
        return []
    if not job.heldout:
        job.notice("the run takes each round's best epoch by held-out loss; without held-out examples it is the last")
    return Sequences(encoder, job.heldout)


def _fit_seeded(
    loaded: LoadedModel,
    units: Units,
    heldout: Iterable[Encoded],
    steps: Steps,
    job: Job,
    checkpoints: Checkpoints,
    per_epoch: int,
) -> FitResult:
    """Seed the global random generators, which dropout uses, for this round; restore them afterwards."""
    seed = job.spec.training.seed + 1_000_003 * job.round
    devices = [replica.device for replica in loaded.all_replicas if replica.device.type == "cuda"]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for place, device in enumerate(devices[1:], 1):  # which would drop out alike
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed + place)
        return fit(loaded, units, heldout, steps, job, checkpoints, per_epoch)
