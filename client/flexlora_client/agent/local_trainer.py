"""Local training and evaluation of one participant: its data, its training loop, its held-out examples.

The training loop may be a custom class, so its result is checked here.
"""

import operator
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

from flexlora_client.agent.reserve import reserved
from flexlora_client.agent.slice_cache import SliceRequest
from flexlora_client.errors import BadInput, ClientError, OutOfMemory, TrainingError
from flexlora_client.training.contract import (
    ADAPTER_FILE,
    CONFIG_FILE,
    DEFAULT_COMPUTE,
    Compute,
    Job,
    Outcome,
    Progress,
    Trainer,
)
from flexlora_client.training.data.examples import Example
from flexlora_client.training.evaluation.evaluate import Measured, measure
from flexlora_client.training.evaluation.own_metric import METRIC_NAME_PATTERN, OwnMetric
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_client.training.models.devices import is_out_of_memory
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_client.training.trainer_support import check_supported
from flexlora_shared.header import HeaderError, TensorError, read_header
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Trainable

MAX_METRICS = 32  # the protocol's limit
FIRST_EVALUATION_S = 30.0  # before anything was trained, by which its time could be bounded
LEAST_EVALUATION_S = 2.0  # nobody misses them, and a training of seconds would leave time for nothing
MAX_METRIC = 1e100  # the protocol's limit of size


class Around(TypedDict, total=False):
    """What surrounds a round's training; see the fields of `Job`."""

    deadline: float | None
    max_steps: int | None
    stop: Callable[[], bool]
    checkpoints: Path | None
    state: Path | None
    notice: Callable[[str], None]


@dataclass
class LocalTrainer:
    """A participant's training loop, data and device. `compute` changes where memory turns out too small for it."""

    trainer: Trainer
    models: Models  # loaded base models, shared with the trainer where it is the agent's own
    train: Sequence[Example]
    heldout: Sequence[Example]  # may be empty: then nothing is evaluated
    answers: int  # most held-out prompts that an evaluation answers by generating text
    device: str
    model_path: str | None
    participant: str = ""  # its name; seeds what must differ between participants, the same on every coordinator
    compute: Compute = DEFAULT_COMPUTE  # how to compute a round
    own_metric: OwnMetric | None = None  # a function of the participant's own beside the metrics of the task
    evaluation_share: float = 0.25  # of the time that training takes, for a round's evaluations

    def place(self, spec: RunSpec, adapter: Path) -> LoadedModel:
        """The base model, loaded once, with the slice in folder `adapter`. Raises: TrainingError, BadInput."""
        with _translate_errors("loading the base model"):
            return self.models.with_slice(
                read_slice(adapter, spec), spec, self.device, self.model_path, compute=self.compute
            )

    def check(self, trainable: Trainable) -> None:
        """Check that the training loop supports this kind of training. Raises: BadInput."""
        check_supported(self.trainer, trainable)

    def fit(
        self,
        request: SliceRequest,
        number: int,
        adapter: Path,
        output: Path,
        progress: Progress,
        trainable: Trainable = "slice",
        frozen: Path | None = None,
        **around: Unpack[Around],
    ) -> Outcome:
        """Train round `number` from the slice in `adapter` into `output`; `request` says its ranks, `frozen` what acts beside it.

        Raises:
            TrainingError: raised by the training loop; Stopped where `stop` asked for it.
            BadInput: the loop raised anything else, wrote no adapter of this run, or does not support `trainable`.
        """
        self.check(trainable)
        job = Job(
            spec=request.spec,
            round=number,
            adapter=adapter,
            train=self.train,
            heldout=self.heldout,
            output=output,
            device=self.device,
            model_path=self.model_path,
            progress=progress,
            trainable=trainable,
            frozen=frozen,
            participant=self.participant,
            compute=self.compute,
            **around,
        )
        with reserved(output, (adapter / ADAPTER_FILE).stat().st_size) as release, _translate_errors("training"):
            returned = self.trainer.train(replace(job, progress=_releasing(progress, release), before_writing=release))
        outcome = _check_outcome(returned, request, output)
        self.compute = outcome.compute or self.compute  # what memory forced holds for the next rounds too
        if not (outcome.adapter.parent / CONFIG_FILE).exists():
            shutil.copyfile(adapter / CONFIG_FILE, outcome.adapter.parent / CONFIG_FILE)
        return outcome

    def evaluation_seconds(self, training_seconds: float | None) -> float:
        """Seconds for one of a round's two evaluations, by how long training took the last time; None: not known yet."""
        if training_seconds is None:
            return FIRST_EVALUATION_S
        return max(LEAST_EVALUATION_S, self.evaluation_share / 2 * training_seconds)

    def evaluate(
        self,
        spec: RunSpec,
        adapter: Path,
        *,
        most: SampleSize | None = None,
        seconds: float | None = None,
        base_adapter: Path | None = None,
    ) -> Measured:
        """Metrics of the adapter in folder `adapter` on at most `most` held-out examples, in about `seconds`.

        Where `adapter` is a fresh one, `base_adapter` is the folder of the slice that it was trained on top of.

        Raises: TrainingError, BadInput.
        """
        everything = SampleSize(len(self.heldout), len(self.heldout), self.answers)
        with _translate_errors("evaluation"):
            measured = measure(
                spec,
                adapter,
                self.heldout,
                most=most or everything,
                seconds=seconds,
                device=self.device,
                model_path=self.model_path,
                models=self.models,
                base_adapter=base_adapter,
                compute=self.compute,
                own_metric=self.own_metric,
            )
        return Measured(sendable_metrics(measured.metrics), measured.sample)


def sendable_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that the protocol allows: finite values, valid names, at most MAX_METRICS."""
    fitting = [(k, float(v)) for k, v in metrics.items() if METRIC_NAME_PATTERN.fullmatch(k) and abs(v) <= MAX_METRIC]
    return dict(fitting[:MAX_METRICS])


def _releasing(progress: Progress, release: Callable[[], None]) -> Progress:
    """The progress, which frees the update's room on the disk after the last step, for loops that do not do it themselves."""

    def releasing(step: int, total: int, loss: float) -> None:
        if step >= total:
            release()
        progress(step, total, loss)

    return releasing


@contextmanager
def _translate_errors(doing: str) -> Iterator[None]:
    """Turn exceptions of custom training loops and model code into BadInput or OutOfMemory."""
    try:
        yield
    except (ClientError, TrainingError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"{doing} needs more memory than the device has; end what else uses it, or give another --device."
            ) from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise BadInput(f"{doing} failed in {where}: {type(error).__name__}: {error}") from error


def _check_outcome(returned: object, request: SliceRequest, output: Path) -> Outcome:
    """The checked outcome, with its numbers as int and float. Raises: BadInput."""
    if not isinstance(returned, Outcome):
        raise BadInput(f"the training loop returns a {type(returned).__name__}; it must return an Outcome")
    path = returned.adapter
    if not isinstance(path, Path) or path.name != ADAPTER_FILE:
        raise BadInput(f"the training loop names {path!r} as its adapter; it must be a Path to a file {ADAPTER_FILE}")
    if not (path.is_file() and path.resolve().is_relative_to(output.resolve())):
        raise BadInput(f"the training loop names {path} as its adapter; it must write one inside {output}")
    compute = returned.compute if isinstance(returned.compute, Compute) else None
    outcome = Outcome(path, _check_count(returned.examples), _check_metrics(returned.metrics), compute)
    try:
        with path.open("rb") as file:
            read_header(file, path.stat().st_size, request.shapes)
    except (HeaderError, TensorError) as error:
        raise BadInput(f"the training loop wrote no adapter of this run: {error}") from None
    return outcome


def _check_count(examples: object) -> int:
    try:
        count = operator.index(examples)  # type: ignore[arg-type]  # a custom loop gives what it likes
    except TypeError:
        count = 0
    if count < 1:
        raise BadInput(f"the training loop reports {examples!r} examples; an update needs at least one, a whole number")
    return count


def _check_metrics(metrics: object) -> dict[str, float]:
    try:
        pairs = list(metrics.items()) if isinstance(metrics, Mapping) else [("", "")]
        if not any(isinstance(value, str | bytes) or not isinstance(name, str) for name, value in pairs):
            return {name: float(value) for name, value in pairs}
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise BadInput(f"the training loop's metrics must map names to numbers; they are {str(metrics)[:200]}")
