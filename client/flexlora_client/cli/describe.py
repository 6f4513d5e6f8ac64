"""`describe`: what a run can train of a model, as a table or as a definition ready for `runs create`."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from flexlora_client.cli import rendering
from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.options import build_message
from flexlora_client.errors import BadInput
from flexlora_shared.messages.runs import ProblemType, PromptFormat, RunSpec, TaskType, TrainingSpec
from flexlora_shared.run_checks import faults, warnings

LABEL_COLUMNS = ("label", "category", "labels", "tags", "ner_tags")


def describe(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the base model.", metavar="MODEL")],
    task_type: Annotated[TaskType, typer.Option("--task-type", help="What the model is fine-tuned for.")] = "CAUSAL_LM",
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Name or ending of a layer to train; repeatable. \\[all linear]"),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Name or ending of a layer to leave out; repeatable.")
    ] = None,
    labels_from: Annotated[
        Path | None,
        typer.Option(
            "--labels-from",
            help="Classifiers: a .txt or .json list of labels, a data file that holds them, or a folder of image folders.",
        ),
    ] = None,
    problem_type: Annotated[
        ProblemType,
        typer.Option("--problem-type", help="SEQ_CLS: what it predicts; of regression, labels name numbers."),
    ] = "single-label",
    prompt_format: Annotated[
        PromptFormat | None,
        typer.Option(
            "--prompt-format", help="How rows become text. \\[the tokenizer's chat template where it has one]"
        ),
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
    """Show the layers of a model that a run can train; a trial adapter is placed on them, without loading the model."""
    require_agent_extra()
    labels = _read_labels(labels_from) if labels_from else ()
    from flexlora_client.training.models import describe_model  # takes seconds to import
    from flexlora_client.training.models.trainable_layers import ALL_LINEAR

    ranks = tuple(rank or (4, 8, 16))
    description = describe_model.describe(
        model,
        task_type,
        target or ALL_LINEAR,
        labels,
        revision,
        problem_type=problem_type,
        exclude=exclude or (),
        smallest_rank=min(ranks),
    )
    spec = build_message(
        RunSpec,
        name=name,
        model=description.model,
        modules=description.modules,
        extra=description.extra,
        ranks=ranks,
        rounds=rounds,
        min_clients=min_clients,
        min_updates=min_clients,
        training=TrainingSpec(prompt_format=prompt_format or description.prompt_format),
    )
    for fault in faults(spec):
        raise BadInput(f"this model makes no run: {fault}")
    for note in (*description.notes, *(f"warning: {warning}" for warning in warnings(spec))):
        print(note, file=sys.stderr)
    if as_json:
        print(spec.model_dump_json(indent=2))
    else:
        rendering.show(spec, rendering.modules(spec), as_json=False)


def _read_labels(path: Path) -> tuple[str, ...]:
    """The classes: lines of a text file, a JSON list, or sorted: the folders of images, or the distinct labels of a data file."""
    try:
        if path.is_dir():
            labels = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
        elif path.suffix == ".txt":
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
        value = [] if column is None else row.fields[column]
        for label in value if isinstance(value, list) else [value]:  # several of a text, or one for each word
            if not isinstance(label, str | int) or isinstance(label, bool):
                raise BadInput(f"{row.place}: the label {label!r} is neither a text nor a whole number")
            labels.add(str(label))
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
