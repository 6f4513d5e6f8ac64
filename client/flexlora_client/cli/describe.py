"""`describe`: what a run can train of a model, as a table or as a definition ready for `runs create`."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from flexlora_client.cli import rendering
from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.options import build_message
from flexlora_client.errors import BadInput
from flexlora_shared.messages.runs import RunSpec, TaskType

LABEL_COLUMNS = ("label", "category")


def describe(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.", metavar="MODEL")],
    task_type: Annotated[TaskType, typer.Option("--task-type", help="What the model is fine-tuned for.")] = "CAUSAL_LM",
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Name or ending of a layer to train; repeatable. [all linear]")
    ] = None,
    labels_from: Annotated[
        Path | None,
        typer.Option("--labels-from", help="SEQ_CLS: a .txt or .json list of labels, or a data file that holds them."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of the model on its hub.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the run in the definition.")] = "my-run",
    rank: Annotated[
        list[int] | None, typer.Option("--rank", min=1, help="An allowed rank; repeatable. [4 8 16]")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in the definition.")] = 10,
    min_clients: Annotated[
        int,
        typer.Option("--min-clients", min=1, help="Participants, and updates, that a round needs in the definition."),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's definition, to be edited.")] = False,
) -> None:
    """Show the layers of a model that a run can train, from its configuration alone."""
    require_agent_extra()
    labels = _read_labels(labels_from) if labels_from else ()
    from flexlora_client.training.models import describe_model  # takes seconds to import

    description = describe_model.describe(model, task_type, target or describe_model.ALL_LINEAR, labels, revision)
    spec = build_message(
        RunSpec,
        name=name,
        model=description.model,
        modules=description.modules,
        extra=description.extra,
        ranks=tuple(rank or (4, 8, 16)),
        rounds=rounds,
        min_clients=min_clients,
        min_updates=min_clients,
    )
    if as_json:
        print(spec.model_dump_json(indent=2))
    else:
        rendering.show(spec, rendering.modules(spec), as_json=False)


def _read_labels(path: Path) -> tuple[str, ...]:
    """The classes: lines of a text file, a JSON list, or the distinct labels of a data file in sorted order."""
    try:
        if path.suffix == ".txt":
            labels = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        elif path.suffix == ".json":
            labels = json.loads(path.read_bytes())
        else:
            labels = _labels_of_data(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read labels from {path}: {error}") from None
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
        raise BadInput(f"{path} holds no list of labels; give texts, one for each class")
    if len(set(labels)) < len(labels):
        raise BadInput(f"{path} names a label twice")
    return tuple(labels)


def _labels_of_data(path: Path) -> list[str]:
    from flexlora_client.training.data.files.sources import read_rows

    labels: set[str] = set()
    for row in read_rows(path):
        column = next(
            (name for name in LABEL_COLUMNS if row.fields.get(name) is not None), None
        )  # the training data loader also takes the first
        value = None if column is None else row.fields[column]
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            labels.add(str(value))
        elif column is not None:
            raise BadInput(f"{row.place}: the label {value!r} is neither a text nor a whole number")
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
