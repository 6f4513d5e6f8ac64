"""The teacher's problem as a workload: a frozen net of three layers, which a teacher changed at rank 16; nothing is read.

Learning it needs rank by construction: a student of rank r cannot come nearer to the teacher than the teacher's first r
directions. Each group of examples is one participant's: its inputs come from ten clusters in proportions of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from flexlora_client.training.data.examples import Example
from flexlora_shared.messages.base import Message
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.contract import BaseModel, Corpus, Item, Workload
from flexlora_simulation.workloads.teacher_problem import CLASSES, KINDS, Kind, problem
from flexlora_simulation.workloads.teacher_training import MODULES, PREFIX, example, measure
from flexlora_simulation.wrong_fields import sentences


class TeacherOptions(Message):
    """Options of the workload."""

    kind: Annotated[
        Literal["rich", "noisy"],
        Field(description="rich: 1024 examples each, temperature 0.1. noisy: 128 and 0.5"),
    ] = "rich"
    examples: Annotated[
        Annotated[int, Field(ge=1, le=100_000)] | None, Field(description="Of each participant; null: the kind's")
    ] = None
    temperature: Annotated[
        Annotated[float, Field(gt=0, le=100)] | None,
        Field(description="Of the teacher's softmax that labels are drawn from; null: the kind's"),
    ] = None
    participants: Annotated[int, Field(ge=1, le=10_000, description="Groups of examples")] = 20
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Of the net, the teacher and the examples")] = 0


class TeacherStudent(Workload):
    """Agreement with the teacher; dealt by group."""

    metric = "agreement"
    higher_is_better = True
    trainer = "flexlora_simulation.workloads.teacher_training:TeacherTrainer"

    def __init__(self, options: WorkloadOptions) -> None:
        if options.data is not None or options.model is not None:
            raise ExperimentError("workload: teacher-student makes its data and its model; leave data and model out")
        try:
            self._options = TeacherOptions.model_validate(options.options)
        except ValidationError as error:
            raise ExperimentError(
                "\n".join(f"workload.options.{each}" for each in sentences(error, TeacherOptions))
            ) from error

    def corpus(self) -> Corpus:
        """Every participant's examples as a group; the test part: 4,000 on the even mixture of clusters."""
        own, usual = self._options, KINDS[self._options.kind]
        kind = Kind(own.examples or usual.examples, own.temperature or usual.temperature)
        made = problem(own.seed, kind, own.participants, "test")
        train = [
            Item(example(inputs, label), f"class-{label:02}", f"group-{group:04}")
            for group in range(own.participants)
            for inputs, label in zip(made.inputs[group], made.labels[group].tolist(), strict=True)
        ]
        test = [
            Item(example(inputs, label), f"class-{label:02}")
            for inputs, label in zip(made.measured, made.answers.tolist(), strict=True)
        ]
        return Corpus(train, test)

    def base_model(self) -> BaseModel:
        """The net's layers, under a name that tells its seed."""
        labels = tuple(f"class-{label:02}" for label in range(CLASSES))
        return BaseModel(f"{PREFIX}{self._options.seed}", "SEQ_CLS", labels, modules=MODULES)

    def measure(self, spec: RunSpec, adapter: Path, examples: Sequence[Example]) -> dict[str, float]:
        """Agreement with the teacher, and the loss of the labels."""
        return measure(spec, adapter, examples)
