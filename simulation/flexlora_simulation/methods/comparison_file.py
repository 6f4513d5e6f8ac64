"""The definition of a comparison: an experiment, its variants, and what is run of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, JsonValue, ValidationError

from flexlora_shared.messages.base import Message, RunName, Tuple
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment, Seed, parse
from flexlora_simulation.methods.catalogue import method
from flexlora_simulation.wrong_fields import sentences
from flexlora_simulation.yaml_text import parse_yaml

HELDOUT = {"evaluation": {"on": ["heldout"], "every": 1_000_000}}  # what rates are chosen by, after the last round


class Comparison(Message):
    """One experiment under several methods."""

    name: Annotated[RunName, Field(description="Of the comparison and of its result's file")]
    title: Annotated[str, Field(description="A heading for its section in the evidence; empty: the name")] = ""
    about: Annotated[str, Field(description="A paragraph for that section, in Markdown")] = ""
    experiment: Annotated[
        dict[str, JsonValue], Field(description="The experiment, or the path of its file, relative to this one")
    ]
    cells: Annotated[
        dict[str, dict[str, JsonValue]],
        Field(min_length=1, description="Variants of the experiment by name: what each changes in it"),
    ] = {"": {}}
    methods: Annotated[Tuple[str], Field(min_length=1, description="What is compared, by the names of the catalogue")]
    rates: Annotated[
        Tuple[Annotated[float, Field(gt=0)]],
        Field(
            min_length=1, description="Learning rates that each method chooses from, ascending; one: nothing is tuned"
        ),
    ]
    rates_of: Annotated[
        dict[str, Annotated[Tuple[Annotated[float, Field(gt=0)]], Field(min_length=1)]],
        Field(description="By method: its own rates instead of those, such as a method's that trains with SGD"),
    ] = {}
    seeds: Annotated[Tuple[Seed], Field(min_length=1, description="Of the runs that are measured, for every method")]
    tuning_seeds: Annotated[Tuple[Seed], Field(min_length=1, description="Of the runs that choose the rate")] = (1000,)
    tuned_by: Annotated[
        Literal["metric", "loss"],
        Field(
            description="What of the held-out examples chooses the rate: the workload's metric, or their loss, where the metric "
            "needs answers, which take long to generate"
        ),
    ] = "metric"
    seeded_workload: Annotated[
        bool,
        Field(
            description="Whether a run's seed is the workload's option `seed`, too: each seed then has a problem of its own, of "
            "a workload that makes or draws its data"
        ),
    ] = False
    baseline: Annotated[str, Field(description="The method that the others are told beside")] = "flexlora"

    def rates_for(self, method: str) -> tuple[float, ...]:
        """The learning rates that it chooses from."""
        return self.rates_of.get(method, self.rates)

    def experiment_of(
        self, cell: str, rate: float | None = None, seed: int | None = None, tuning: bool = False
    ) -> Experiment:
        """The experiment of one run, before a method makes its own of it. Raises: ExperimentError."""
        content = merged(self.experiment, self.cells[cell])
        if rate is not None:
            content = merged(content, {"run": {"training": {"learning_rate": rate}}})
        if seed is not None:
            content = merged(content, {"seed": seed})
            if self.seeded_workload:
                content = merged(content, {"workload": {"options": {"seed": seed}}})
        if tuning:
            content = merged(content, HELDOUT)
            if self.tuned_by == "loss":
                content = merged(content, {"evaluation": {"answers": 0}})
        return parse(content)

    def told(self) -> dict[str, Any]:
        """For the evidence: data and models by their names alone, wherever they lay."""
        told: dict[str, Any] = json.loads(self.model_dump_json(exclude={"name", "title", "about"}))
        for place in (told["experiment"], *told["cells"].values()):
            workload = place.get("workload", {})
            workload.update({name: Path(workload[name]).name for name in ("data", "model") if workload.get(name)})
        return told


def load_comparison(path: Path, data: str | None = None, model: str | None = None) -> Comparison:
    """The comparison in a YAML file; `data` and `model`: of the workload, in the place of what the experiment says.

    Raises:
        ExperimentError: it cannot be read, a field of it is wrong, or a cell or a method makes no experiment.
    """
    content = _yaml(path)
    experiment, folder = content.get("experiment"), path.parent
    if isinstance(experiment, str):
        file = folder / experiment
        content["experiment"], folder = _yaml(file), file.parent
    try:
        comparison = Comparison.model_validate_json(json.dumps(content))
    except (ValidationError, TypeError) as error:
        raise ExperimentError("\n".join(sentences(error, Comparison))) from error
    given = {name: value for name, value in (("data", data), ("model", model)) if value is not None}
    whole = _placed(comparison.experiment, folder)
    whole = _placed(
        merged(whole, {"workload": given}), Path()
    )  # what the command line gives is relative to where it is given
    comparison = comparison.model_copy(update={"experiment": whole})
    _check(comparison)
    return comparison


def _placed(content: Mapping[str, JsonValue], folder: Path) -> dict[str, Any]:
    """The same with absolute paths in the place of relative ones in `folder`."""
    placed, whole = parse(content, folder), dict(content)
    if placed.start_from is not None:
        whole["start_from"] = placed.start_from
    if placed.partition.path is not None:
        whole = merged(whole, {"partition": {"path": placed.partition.path}})
    return merged(whole, {"workload": {"data": placed.workload.data, "model": placed.workload.model}})


def merged(content: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with what `change` says in its place; maps are merged, all else is replaced."""
    both = dict(content)
    for name, value in change.items():
        before = both.get(name)
        both[name] = merged(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return both


def _check(comparison: Comparison) -> None:
    for place, rates in (("rates", comparison.rates), *((f"rates_of.{n}", r) for n, r in comparison.rates_of.items())):
        if list(rates) != sorted(set(rates)):
            raise ExperimentError(f"{place}: give them in ascending order, each once")
    if unknown := sorted(set(comparison.rates_of) - set(comparison.methods)):
        raise ExperimentError(
            f"rates_of: {unknown[0]!r} is none of the methods; add it to them, or leave its rates out"
        )
    if comparison.baseline not in comparison.methods:
        raise ExperimentError(f"baseline: {comparison.baseline!r} is none of the methods; add it, or name one of them")
    if set(comparison.seeds) & set(comparison.tuning_seeds):
        raise ExperimentError("tuning_seeds: no seed both chooses a rate and is measured at it; give other ones")
    for cell in comparison.cells:
        experiment = comparison.experiment_of(cell)
        tuned = any(len(comparison.rates_for(name)) > 1 for name in comparison.methods)
        if tuned and experiment.partition.by != "file" and experiment.partition.heldout == 0:
            raise ExperimentError(
                "partition.heldout: rates are chosen by what participants hold out; give a share, such as 0.1, or one rate only"
            )
        if experiment.evaluation.ranks != "all":
            raise ExperimentError(
                "evaluation.ranks: leave it out: a comparison tells what participants of each rank use, so all are measured"
            )
        if comparison.seeded_workload:
            from flexlora_simulation.workloads.registry import (
                open_workload,  # here: it loads PyTorch, which takes seconds
            )

            open_workload(comparison.experiment_of(cell, seed=comparison.seeds[0]).workload)  # it must have the option
        for name in comparison.methods:
            method(name)(experiment)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} is no readable YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{path} holds no map of fields")
    return content
