"""The options that change an experiment for one call."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexlora_client.cli.option_groups import expand_options

if TYPE_CHECKING:
    from flexlora_simulation.experiment import Experiment

FOLDER = "runs"  # of the experiments that are given no folder

ExperimentArgument = Annotated[Path, typer.Argument(help="The experiment's YAML file.", metavar="EXPERIMENT")]


@dataclass(frozen=True)
class ChangeOptions:
    """What is given in place of what the file says."""

    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the experiment.")] = None
    data: Annotated[str | None, typer.Option("--data", help="Folder of the data set's own files.")] = None
    model: Annotated[str | None, typer.Option("--model", help="Base model: a hub id or a folder.")] = None
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Any field, as in run.rounds=5; the value is JSON or text. Repeatable."
        ),
    ] = None


def with_changes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `ChangeOptions`, in the place of its parameter `changes`."""
    return expand_options(command, "changes", ChangeOptions)


def load_changed(path: Path, options: ChangeOptions) -> "Experiment":
    """The experiment in the file with these changes.

    Raises:
        ExperimentError: the file, or what it is changed to, is no experiment.
        typer.BadParameter: a change has no field.
    """
    from flexlora_simulation.experiment import load, parse

    content = load(path).model_dump(mode="json")
    for text in options.changes or ():
        field, separator, value = text.partition("=")
        if not (field and separator):
            raise typer.BadParameter(f"{text!r} is not of the form FIELD=VALUE", param_hint="--set")
        _put(content, field, _value(value))
    for field, given in (("seed", options.seed), ("workload.data", options.data), ("workload.model", options.model)):
        if given is not None:
            _put(content, field, given)
    return parse(content, Path())  # paths that are given here are relative to where the command is


def default_folder(experiment: "Experiment") -> Path:
    """Where an experiment is kept that is given no folder."""
    return Path(FOLDER) / experiment.name / f"seed-{experiment.seed}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(content: dict[str, Any], field: str, value: Any) -> None:
    """Set the field of this path, such as `resources.0.rank`. Raises: typer.BadParameter."""
    *above, last = field.split(".")
    place: Any = content
    try:
        for name in above:
            if isinstance(place, dict) and place.get(name) is None:
                place[name] = {}
            place = place[_key(place, name)]
        place[_key(place, last)] = value
    except (LookupError, ValueError, TypeError):
        raise typer.BadParameter(f"{field} is no field of the experiment", param_hint="--set") from None


def _key(place: Any, name: str) -> str | int:
    return int(name) if isinstance(place, list) else name
