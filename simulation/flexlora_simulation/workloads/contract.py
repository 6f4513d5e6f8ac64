"""The interface of a workload: a plug-in point (entry points of the group `flexlora.workloads`).

A workload is a class made from its options (`WorkloadOptions`); it reads the data set's own files and says which base model
learns them and what is measured. Reading must give the same items in the same order on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from flexlora_client.training.data.examples import Example
from flexlora_client.training.evaluation.own_metric import OwnMetric
from flexlora_shared.messages.runs import ModuleSpec, RunSpec, TaskType
from flexlora_simulation.experiment import WorkloadOptions


@dataclass(frozen=True)
class Item:
    """One example, and what it may be dealt by.

    label: its class, for partitions by label. group: its task, domain or writer, for partitions by group. unseen: the data set
    keeps its group apart, so that it belongs to a participant that never trains, however the others are dealt.
    """

    example: Example
    label: str | None = None
    group: str | None = None
    unseen: bool = False


@dataclass(frozen=True)
class Corpus:
    """The data set's two parts: `train` is dealt to participants, `test` belongs to nobody and may be empty."""

    train: Sequence[Item]
    test: Sequence[Item] = ()


@dataclass(frozen=True)
class BaseModel:
    """The model that is adapted.

    path: hub id or folder. target: PEFT's `target_modules`, or "all-linear". head: of a classifier, trained and averaged beside
    LoRA, or frozen as it lies in the folder. modules: the layers, of a model that is none of transformers': then `path` is a name
    that the workload's own trainer knows, and nothing is read there.
    """

    path: str
    task_type: TaskType = "CAUSAL_LM"
    labels: tuple[str, ...] = ()
    target: str | tuple[str, ...] = "all-linear"
    head: Literal["trained", "frozen"] = "trained"
    modules: tuple[ModuleSpec, ...] = ()


class Workload(Protocol):
    """A data set with its base model and its metric. Derive a class from this one: what it need not have is here."""

    metric: str  # the name of the figure that experiments are compared by, of the agent's evaluation or of `own_metric`
    higher_is_better: bool
    # package.module:function, or one that the workload made, of a model perhaps
    own_metric: str | OwnMetric | None = None
    trainer: str | None = None  # a training loop of its own, package.module:Class: `flexlora_client.training.contract`

    def __init__(self, options: WorkloadOptions) -> None:
        """Raises: ExperimentError, where an option is unknown or wrong."""

    def corpus(self) -> Corpus:
        """All items. Raises: DataError."""

    def base_model(self) -> BaseModel:
        """The model, made where it is one that the workload makes itself. Raises: DataError."""

    def measure(self, spec: RunSpec, adapter: Path, examples: Sequence[Example]) -> dict[str, float] | None:
        """Figures of the slice in folder `adapter`, among them `loss` and `metric`; None: the agent's evaluation measures."""
        return None
