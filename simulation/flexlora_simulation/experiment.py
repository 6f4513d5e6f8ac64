"""The definition of one experiment: data, how they are dealt to participants, what these afford, and the run.

It is written as YAML (`load`) or built in Python; every field of the run is the product's own (`flexlora_shared.messages.runs`).
One experiment is one federation with one seed; `comparison` runs many of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, JsonValue, ValidationError

from flexlora_shared.messages.base import Message, Rank, RankPattern, RunName, Tuple
from flexlora_simulation.errors import ExperimentError

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
OF_THE_RUN = frozenset({"name", "model", "modules", "extra"})  # what the experiment itself decides


class WorkloadOptions(Message):
    """What is learned: a workload by its name, and where its data and its base model lie."""

    name: Annotated[str, Field(description="One that is built in, or that an installed package offers")]
    data: Annotated[
        str | None, Field(description="Folder of the data set's own files; null: the workload makes its own")
    ] = None
    model: Annotated[
        str | None, Field(description="Base model: a hub id or a folder; null: the workload makes its own")
    ] = None
    options: Annotated[dict[str, JsonValue], Field(description="Options of this workload")] = {}


class Partition(Message):
    """How the training examples are dealt to participants; the draw depends on nothing but these and the examples."""

    by: Annotated[
        Literal["uniform", "label", "group", "size"],
        Field(
            description="uniform: equal parts at random. label: the shares of each label by Dirichlet(alpha). group: each "
            "participant has whole groups (tasks, domains, writers). size: parts at random whose sizes are by Dirichlet(alpha)"
        ),
    ] = "uniform"
    participants: Annotated[
        Annotated[int, Field(ge=1, le=100_000)] | None,
        Field(description="How many; null with group: one for each group"),
    ] = None
    alpha: Annotated[float, Field(gt=0, le=1e6, description="Concentration of the Dirichlet distribution")] = 0.5
    smallest: Annotated[
        int, Field(ge=1, description="Fewest examples of a participant; a draw with fewer is drawn again")
    ] = 1
    unseen: Annotated[int, Field(ge=0, description="Participants that never train, and are measured on")] = 0
    heldout: Annotated[Share, Field(description="Share of each participant's examples that it does not train on")] = 0.0
    seed: Annotated[Seed | None, Field(description="Of the draw; null: the experiment's")] = None


class Resource(Message):
    """What some of the participants afford."""

    rank: Annotated[Rank, Field(description="LoRA rank that they train at")]
    hold_rank: Annotated[Rank | None, Field(description="LoRA rank that they hold; null: as they train")] = None
    rank_pattern: Annotated[RankPattern, Field(description="Ranks of modules that differ")] = {}
    share: Annotated[
        float, Field(gt=0, description="Their part of all participants, in proportion to the other shares")
    ] = 1.0
    speed: Annotated[
        float, Field(gt=0, description="Steps in virtual time, as many times as fast as `timing` says")
    ] = 1.0


class Timing(Message):
    """Virtual time: how long participants take, and how reliable they are."""

    step_seconds: Annotated[float, Field(gt=0, description="Of an optimizer step")] = 1.0
    spread: Annotated[
        float, Field(ge=0, le=5, description="Standard deviation of the logarithm of each participant's own speed")
    ] = 0.0
    jitter: Annotated[float, Field(ge=0, le=5, description="The same of each of its rounds")] = 0.0
    bytes_per_second: Annotated[float | None, Field(gt=0, description="Of transfers; null: they take no time")] = None
    available: Annotated[Share, Field(description="Chance that a participant is there when a round opens")] = 1.0
    dropout: Annotated[Share, Field(description="Chance that an assigned participant vanishes without a word")] = 0.0


class Evaluation(Message):
    """What is measured, when, and on how many examples."""

    every: Annotated[
        int, Field(ge=1, description="Rounds from one evaluation to the next; the last one is always measured")
    ] = 1
    on: Annotated[
        Tuple[Literal["test", "unseen", "heldout"]],
        Field(
            description="test: the data set's own test part. unseen: the examples of the participants that never train. "
            "heldout: each participant's own held-out examples, at what it uses"
        ),
    ] = ("test",)
    ranks: Annotated[
        Tuple[Rank] | Literal["largest", "all"],
        Field(description="Ranks of the global adapter that test and unseen are measured at"),
    ] = "all"
    examples: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(description="Most of test and of unseen, drawn once; null: all")
    ] = None
    answers: Annotated[int, Field(ge=0, description="Most answers that are generated in one evaluation")] = 100
    groups: Annotated[
        bool, Field(description="Whether each group of the examples is measured alone, too: METRIC.GROUP")
    ] = False


class Experiment(Message):
    """One federation: who learns what, with what, and how."""

    name: Annotated[RunName, Field(description="Of the experiment and of its run")]
    seed: Annotated[Seed, Field(description="Of every draw and of the run, where they give none of their own")] = 0
    workload: WorkloadOptions
    partition: Partition = Partition()
    resources: Annotated[
        Tuple[Resource], Field(min_length=1, max_length=1000, description="What participants afford, in shares")
    ] = (Resource(rank=8),)
    run: Annotated[
        dict[str, JsonValue],
        Field(
            description="Fields of the run's definition, but for what the experiment decides: name, model, modules, extra"
        ),
    ] = {}
    timing: Timing = Timing()
    evaluation: Evaluation = Evaluation()


def load(path: Path) -> Experiment:
    """The experiment in a YAML file; relative paths in it are relative to the file.

    Raises:
        ExperimentError: it cannot be read, or a field of it is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} is no readable YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{path} holds no experiment: give name, workload and run at least")
    return parse(content, path.parent)


def parse(content: Mapping[str, Any], folder: Path | None = None) -> Experiment:
    """The experiment in JSON's types; relative paths of existing files are taken from `folder`.

    Raises:
        ExperimentError: a field is wrong; the message names it.
    """
    try:
        experiment = Experiment.model_validate_json(json.dumps(content))
    except (ValidationError, TypeError, ValueError) as error:
        raise ExperimentError(_first_fault(error)) from error
    if taken := sorted(OF_THE_RUN & set(experiment.run)):
        raise ExperimentError(f"run.{taken[0]}: the experiment decides it; leave it out of run")
    return experiment if folder is None else _with_paths(experiment, folder)


def _with_paths(experiment: Experiment, folder: Path) -> Experiment:
    paths = {}
    for name in ("data", "model"):
        given = getattr(experiment.workload, name)
        if given is not None and (folder / given).exists():
            paths[name] = str((folder / given).resolve())
    return experiment.model_copy(update={"workload": experiment.workload.model_copy(update=paths)})


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"the experiment is not made of YAML's plain types: {error}"
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}"
