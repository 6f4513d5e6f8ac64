"""The interface between the agent and a training loop: the plug-in point of local training.

A training loop is a class without constructor arguments and with one method, `train(job) -> Outcome`:

    class MyTrainer:
        def train(self, job: Job) -> Outcome:
            ...  # start from the adapter in job.adapter, write job.output / "adapter_model.safetensors"

Name it as `package.module:MyTrainer` (see `plugin`). It must write exactly the tensors of the slice served
(`flexlora_shared.layout.adapter_shapes`), in `job.spec.upload_dtype`; one instance serves every round of a run.

What of the slice is trained is the run's choice: `job.trainable` is "slice", "B", "A" or "fresh", and "prefix" where the
participant holds more than it trains; `flexlora_shared.messages.tasks` says what each uploads. With "prefix", train and write the
adapter in `job.adapter` as if it were a slice, with the adapter in `job.frozen` acting beside it: with PEFT, load both, activate
both, train the first. A class names those that its `train` heeds; without, it is given slices only, and so is a subclass that
brings another `train` and does not name them anew:

        supports = ("slice", "B", "A", "prefix", "fresh")

A loop may ignore `job.stop`, `job.deadline`, `job.max_steps`, `job.checkpoints`, `job.state`, `job.notice` and
`job.before_writing`. Then the first Ctrl-C lets it finish its round, whose update is sent at the next start, and a second one
raises KeyboardInterrupt wherever it is, so it should let that pass. A round that takes longer than its deadline is lost, and a
killed one begins anew.
A loop that heeds `stop` raises `Stopped`, with a sentence that says where it stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from flexlora_client.training.data.examples import Example
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Trainable

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


class Progress(Protocol):
    """Called after every optimizer step; raise here to stop training, then no output is written."""

    def __call__(self, step: int, total: int, loss: float) -> None:
        """Step `step` (from 1) of `total` is done; `loss` is its mean loss, 0 where it had nothing to learn."""


@dataclass(frozen=True)
class Compute:
    """How this machine computes a round: speed and memory depend on it, what is learned does not, but for rounding."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the base model and of its activations
    quantization: Literal["none", "int8", "nf4"] = "none"  # of the base model's linear layers
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    gradient_checkpointing: bool = False  # recompute activations instead of keeping them
    micro_batch: int | None = None  # examples computed at once; None: the run's batch_size
    offload: bool = False  # keep in main memory what of the base model the device cannot hold


DEFAULT_COMPUTE = Compute()


def _go_on() -> bool:
    return False


def _unheard(sentence: str) -> None:
    """What nobody asked to be told."""


def _unready() -> None:
    """Nothing is made ready for what is written."""


@dataclass(frozen=True)
class Job:
    """One round of local training."""

    spec: RunSpec
    round: int
    adapter: Path  # directory of the served slice: adapter_model.safetensors and adapter_config.json
    train: Sequence[Example]
    heldout: Sequence[Example]  # may be empty
    output: Path  # directory for the trained files of the same names; created where missing
    device: str  # "cpu", "cuda", "cuda:1", "mps" or "auto"; of the agent's own loop several too: "cuda:0,cuda:1"
    model_path: str | None  # local path of the base model, instead of spec.model.id
    progress: Progress
    trainable: Trainable = "slice"
    frozen: Path | None = None  # with "prefix": directory, as `adapter`, of what acts beside it and is not trained
    # the name that it enrolled under, which another may have too: with the examples it seeds a fresh adapter, which must
    # differ between participants
    participant: str = ""
    compute: Compute = DEFAULT_COMPUTE
    deadline: float | None = None  # time.time() at which training must end; what is trained by then is the outcome
    # optimizer steps after which training ends as at the deadline; None: by the clock alone
    max_steps: int | None = None
    # asked after every step but the last; where true, training saves a checkpoint and raises Stopped
    stop: Callable[[], bool] = _go_on
    checkpoints: Path | None = None  # folder for checkpoints of this round; None: none are written
    state: Path | None = None  # folder that lasts from round to round, for the optimizer's state; None: none is kept
    notice: Callable[[str], None] = _unheard  # takes a sentence for the participant, without a full stop
    before_writing: Callable[[], None] = _unready  # call it when training is over: room on the disk is held until then


@dataclass(frozen=True)
class Outcome:
    """The result of training."""

    adapter: Path  # the adapter_model.safetensors written
    examples: int  # distinct examples trained on: the update's weight
    metrics: dict[str, float]  # by metric name of the protocol, e.g. train_loss, train_steps, train_steps_planned
    compute: Compute | None = None  # how it was computed in the end, where memory forced other settings than the job's


class Trainer(Protocol):
    """A training loop; its attribute `supports` may be missing, see the module."""

    def train(self, job: Job) -> Outcome:
        """Train one round from `job.adapter`. Raises: TrainingError with a sentence for the participant."""
