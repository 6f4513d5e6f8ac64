"""A participant's own figures in TensorBoard, MLflow or Weights & Biases, by accelerate's classes for these trackers.

Told are the run's settings, rank and number of examples, the loss of every step and the metrics of every round, and never an
example. TensorBoard's files stay on the machine; where the others keep theirs, their own environment variables say.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

from flexlora_client.errors import BadInput, UsageError
from flexlora_shared.messages.runs import RunSpec

PACKAGES = {"tensorboard": "'flexlora[tensorboard]'", "mlflow": "mlflow", "wandb": "wandb"}
FOLDER = "runs"  # of TensorBoard's files, as its own default
GROUPS = {"trained": "training", "evaluated": "evaluation"}  # events that carry metrics
BEGINNINGS = ("declared", "evaluating")  # events that say the rank
TOLD_OF_BEGINNING = ("rank", "hold_rank", "examples")
# of W&B's copies of what the process prints and of its code: what is printed may name the participant's files
NO_COPIES = {"console": "off", "disable_code": True, "disable_git": True}


def check_track(track: str) -> tuple[str, str]:
    """What is meant by `--track NAME` or `--track tensorboard=FOLDER`: the name and the folder.

    Raises:
        UsageError: it means nothing.
        BadInput: its package is not installed.
    """
    kind, separator, folder = track.partition("=")
    if kind not in PACKAGES or (separator and (kind != "tensorboard" or not folder)):
        raise UsageError(f"--track {track}: write tensorboard, tensorboard=FOLDER, mlflow or wandb")
    if importlib.util.find_spec(kind) is None:
        raise BadInput(f"--track {kind} needs a package that this installation lacks: pip install {PACKAGES[kind]}")
    return kind, folder or FOLDER


class Tracker:
    """Tells one tracker; where that fails, `on_failure` is told a sentence, and the agent goes on without."""

    def __init__(self, track: str, spec: RunSpec, on_failure: Callable[[str], None]) -> None:
        """Raises: UsageError, BadInput, where there is no such tracker or it does not start."""
        self._kind, folder = check_track(track)
        self._spec, self._on_failure, self._told_settings = spec, on_failure, False
        trackers: Any = importlib.import_module("accelerate.tracking")  # without types
        try:
            trackers.PartialState(
                cpu=True
            )  # the trackers need it; else it looks for other processes, and judges GPUs by them
            if self._kind == "tensorboard":
                tracker = trackers.TensorBoardTracker(spec.name, folder)
            elif self._kind == "mlflow":
                tracker = trackers.MLflowTracker(spec.name)
            else:
                tracker = trackers.WandBTracker(spec.name, settings=NO_COPIES)
            with redirect_stdout(sys.stderr):  # a program may read stdout
                tracker.start()
        except Exception as error:  # the packages' own, of many kinds
            raise BadInput(f"--track {track} does not start: {type(error).__name__}: {error}") from error
        self._tracker: Any = tracker  # None: it failed, or is closed

    def event(self, kind: str, at: str, fields: Mapping[str, Any]) -> None:
        """Tell an event's metrics, at its round; before the first, the run's settings."""
        if kind in BEGINNINGS and not self._told_settings:
            self._told_settings = True
            settings = settings_of(self._spec) | {name: fields[name] for name in TOLD_OF_BEGINNING if name in fields}
            self._tell(lambda tracker: tracker.store_init_configuration(settings))
        elif kind in GROUPS:
            self._log({f"{GROUPS[kind]}/{name}": value for name, value in fields["metrics"].items()}, fields["round"])

    def loss(self, round: int, step: int, total: int, loss: float) -> None:
        """Tell the loss of step `step` of `total` in a round, at its place in the whole run."""
        self._log({"training/loss_by_step": loss}, (round - 1) * total + step, round)

    def close(self) -> None:
        """There is nothing more to tell."""
        self._tell(lambda tracker: tracker.finish())
        self._tracker = None

    def _log(self, values: dict[str, float], step: int, round: int | None = None) -> None:
        if self._kind == "wandb":  # whose steps may not go back, as from the steps of a round to its number
            named = values | {"round": step if round is None else round}
            self._tell(lambda tracker: tracker.log(named))
        else:
            self._tell(lambda tracker: tracker.log(values, step=step))

    def _tell(self, what: Callable[[Any], object]) -> None:
        if self._tracker is None:
            return
        try:
            with redirect_stdout(sys.stderr):
                what(self._tracker)
        except Exception as error:  # a full disk, a server that is gone: figures are no reason to lose a round
            self._tracker = None
            self._on_failure(f"{self._kind} takes no more figures ({type(error).__name__}: {error}); going on without")


def settings_of(spec: RunSpec) -> dict[str, str | int | float | bool]:
    """What the operator set, without the lists of layers."""
    run = {"run": spec.name, "model": spec.model.id, "task": spec.model.task_type, "strategy": spec.strategy}
    training = {f"training.{name}": value for name, value in spec.training.model_dump(mode="json").items()}
    plain: dict[str, str | int | float | bool] = {**run, "rounds": spec.rounds}
    return plain | {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in training.items()
        if value is not None
    }
