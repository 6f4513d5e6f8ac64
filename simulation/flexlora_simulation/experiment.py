"""The definition of one experiment: data, how they are dealt to participants, what these afford, and the run.

It is written as YAML or JSON (`load`) or built in Python; every field of the run is the product's own
(`flexlora_shared.messages.runs`). One experiment is one federation with one seed. docs/experiments.md tells every field.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, JsonValue, ValidationError, model_validator

from flexlora_shared.messages.base import Message, Rank, RankPattern, RunName, Tuple
from flexlora_shared.messages.runs import ModelSpec, ModuleSpec, RunSpec
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.wrong_fields import sentences
from flexlora_simulation.yaml_text import parse_yaml

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
OF_THE_RUN = frozenset({"name", "model", "modules", "extra", "start_from"})  # what the experiment itself decides

# FlexLoRA's four kinds of participants: the rank in attention layers, and in MLPs (Bai et al. 2024, arXiv 2402.11505, table 5)
TYPES = ((8, 8), (30, 30), (30, 200), (200, 200))
# Its resource distributions (figure 3), with the shares of its authors' code; `normal` has the code's mean and standard
# deviation, and the order of the figure, where the code has another
SHARES: Mapping[str, tuple[float, float, float, float]] = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "heavy-tail-light": (0.80, 0.05, 0.05, 0.10),
    "heavy-tail-strong": (0.05, 0.05, 0.10, 0.80),
    "normal": (0.0575, 0.4425, 0.4425, 0.0575),
}


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
        Literal["uniform", "label", "group", "size", "file"],
        Field(
            description="uniform: equal parts at random. label: the shares of each label by Dirichlet(alpha). group: each "
            "participant has whole groups (tasks, domains, writers), or an equal part of one where there are more participants "
            "than groups. size: parts at random whose sizes are by Dirichlet(alpha). file: as path says"
        ),
    ] = "uniform"
    path: Annotated[
        str | None, Field(description="With file: a population.parquet that an experiment or another program wrote")
    ] = None
    participants: Annotated[
        Annotated[int, Field(ge=1, le=100_000)] | None,
        Field(description="How many; null with group: one for each group, with file: all"),
    ] = None
    alpha: Annotated[float, Field(gt=0, le=1e6, description="Concentration of the Dirichlet distribution")] = 0.5
    smallest: Annotated[
        int, Field(ge=1, description="Fewest examples of a participant; by label, a draw with fewer is drawn again")
    ] = 1
    unseen: Annotated[
        int,
        Field(ge=0, description="Participants that never train, and are measured on; with group, of whole groups"),
    ] = 0
    unseen_groups: Annotated[
        Tuple[str], Field(description="With group: the groups whose participants never train, instead of unseen")
    ] = ()
    heldout: Annotated[Share, Field(description="Share of each participant's examples that it does not train on")] = 0.0
    seed: Annotated[Seed | None, Field(description="Of the draw; null: the experiment's")] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        fields = type(self).model_fields
        drawn = [name for name in fields if name not in ("by", "path") and getattr(self, name) != fields[name].default]
        if self.by == "file" and (self.path is None or drawn):
            raise ValueError(
                f"by file takes everything from the file: leave {', '.join(drawn)} out"
                if drawn
                else "by file needs path, a population.parquet"
            )
        if self.by != "file" and self.path is not None:
            raise ValueError("path goes with by: file; leave it out")
        if self.unseen_groups and (self.by != "group" or self.unseen):
            raise ValueError("unseen_groups goes with by: group, instead of unseen")
        return self


class Resource(Message):
    """What some of the participants afford."""

    rank: Annotated[Rank, Field(description="LoRA rank that they train at")]
    hold_rank: Annotated[Rank | None, Field(description="LoRA rank that they hold; null: as they train")] = None
    rank_pattern: Annotated[
        RankPattern, Field(description="Ranks of modules that differ, by name or name ending, as PEFT's rank_pattern")
    ] = {}
    attention_rank: Annotated[
        Rank | None, Field(description="Rank of the attention layers that rank_pattern does not name; null: rank")
    ] = None
    share: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="Their part of all participants, in proportion to the other shares; null: 1"),
    ] = None
    count: Annotated[Annotated[int, Field(ge=0)] | None, Field(description="How many they are, instead of share")] = (
        None
    )
    speed: Annotated[
        float, Field(gt=0, description="Steps in virtual time, as many times as fast as `timing` says")
    ] = 1.0

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.share is not None and self.count is not None:
            raise ValueError("give share or count, not both")
        return self


class Distribution(Message):
    """One of the FlexLoRA paper's distributions of its four resource types, in short for a list of resources."""

    distribution: Annotated[
        Literal["uniform", "heavy-tail-light", "heavy-tail-strong", "normal"],
        Field(
            description="heavy-tail-light: most afford little. heavy-tail-strong: most afford much. normal: most lie between"
        ),
    ]
    ranks: Annotated[
        Annotated[Tuple[Rank], Field(min_length=4, max_length=4)] | None,
        Field(
            description="Of the four types, from the least; null: the paper's 8, 30, 30 in attention and 200 beyond, 200"
        ),
    ] = None
    hold_rank: Annotated[Rank | None, Field(description="LoRA rank that all hold; null: as they train")] = None
    speeds: Annotated[
        Annotated[Tuple[Annotated[float, Field(gt=0)]], Field(min_length=4, max_length=4)] | None,
        Field(description="Of the four types; null: all 1"),
    ] = None


def _as_list(given: Any) -> Any:
    """The resources that a distribution or its name stand for; anything else as it is."""
    if isinstance(given, str):
        given = {"distribution": given}
    if not isinstance(given, Mapping):
        return given
    try:
        named = Distribution.model_validate_json(json.dumps(given))
    except (ValidationError, TypeError) as error:
        raise ValueError("; ".join(sentences(error, Distribution))) from error
    types = TYPES if named.ranks is None else [(rank, rank) for rank in named.ranks]
    return tuple(
        Resource(
            rank=rank,
            attention_rank=None if attention == rank else attention,
            hold_rank=named.hold_rank,
            share=share,
            speed=speed,
        )
        for (attention, rank), share, speed in zip(
            types, SHARES[named.distribution], named.speeds or (1.0,) * 4, strict=True
        )
    )


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
            "heldout: each participant's own held-out examples, at its hold_rank or rank"
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

    name: Annotated[
        RunName, Field(description="Of the experiment and of its run: lower-case letters, digits and hyphens")
    ]
    seed: Annotated[Seed, Field(description="Of every draw and of the run, where they give none of their own")] = 0
    workload: Annotated[WorkloadOptions, Field(description="What is learned")]
    partition: Annotated[Partition, Field(description="How the training examples are dealt")] = Partition()
    resources: Annotated[
        Tuple[Resource],
        Field(
            min_length=1,
            max_length=1000,
            description="What participants afford: a list, or a distribution of the paper's, or just its name",
        ),
        BeforeValidator(_as_list),
    ] = (Resource(rank=8),)
    resources_by: Annotated[
        Literal["chance", "size"],
        Field(
            description="Who affords what. chance: at random. size: in the order of the resources, from the participants with "
            "the fewest training examples to those with the most"
        ),
    ] = "chance"
    run: Annotated[
        dict[str, JsonValue],
        Field(
            description="Fields of the run's definition, but for what the experiment decides: name, model, modules, extra, "
            "start_from"
        ),
    ] = {}
    start_from: Annotated[
        str | None,
        Field(description="Folder of an experiment that ended: the run begins with its last adapter, not a random one"),
    ] = None
    only: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Field(description="Name of the one participant that takes part; null: all of them"),
    ] = None
    pooled: Annotated[
        bool,
        Field(description="Whether one participant trains, on the examples of all that are seen: central training"),
    ] = False
    sparse_density: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(
            description="Share of each adapted matrix that is trained in full, at places drawn from the run's seed (SLoRA's "
            "first stage); null: LoRA. The rank must be as large as the matrices"
        ),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(
            description="Of the base model and its activations where participants train and where it is measured; LoRA's weights "
            "stay float32. auto: bfloat16 on GPUs that have it, float32 elsewhere"
        ),
    ] = "auto"
    timing: Annotated[Timing, Field(description="How long participants take in virtual time")] = Timing()
    evaluation: Annotated[Evaluation, Field(description="What is measured")] = Evaluation()


def load(path: Path) -> Experiment:
    """The experiment in a YAML or JSON file; relative paths in it are relative to the file.

    Raises:
        ExperimentError: it cannot be read, or fields of it are wrong.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{path} holds no experiment: give name, workload and run at least")
    try:
        return parse(content, path.parent)
    except ExperimentError as error:
        raise ExperimentError(f"{path}:\n{error}") from error


def parse(content: Mapping[str, Any], folder: Path | None = None) -> Experiment:
    """The experiment in JSON's types; relative paths of existing files are taken from `folder`.

    Raises:
        ExperimentError: fields are wrong; a line for each.
    """
    try:
        experiment = Experiment.model_validate_json(json.dumps(content))
    except (ValidationError, TypeError) as error:
        raise ExperimentError("\n".join(sentences(error, Experiment))) from error
    _check_run(experiment)
    return experiment if folder is None else _with_paths(experiment, folder)


def _check_run(experiment: Experiment) -> None:
    """Check the fields of the run with a model made up, so that a wrong one is told before anything is loaded."""
    if taken := sorted(OF_THE_RUN & set(experiment.run)):
        raise ExperimentError(f"run.{taken[0]}: the experiment decides it; leave it out of run")
    made_up = {
        "name": experiment.name,
        "ranks": [1],
        "model": ModelSpec(id="any").model_dump(mode="json"),
        "modules": [ModuleSpec(name="any", out_features=1, in_features=1).model_dump()],
    }
    try:
        RunSpec.model_validate(made_up | experiment.run)
    except ValidationError as error:
        raise ExperimentError("\n".join(f"run.{each}" for each in sentences(error, RunSpec))) from error


def _with_paths(experiment: Experiment, folder: Path) -> Experiment:
    workload, partition = experiment.workload, experiment.partition
    return experiment.model_copy(
        update={
            "workload": workload.model_copy(
                update={"data": _resolved(workload.data, folder), "model": _resolved(workload.model, folder)}
            ),
            "partition": partition.model_copy(update={"path": _resolved(partition.path, folder)}),
            "start_from": _resolved(experiment.start_from, folder),
        }
    )


def _resolved(given: str | None, folder: Path) -> str | None:
    """The path as an absolute one where something lies there; else as given, which may be the id of a model on a hub."""
    return str((folder / given).resolve()) if given is not None and (folder / given).exists() else given
