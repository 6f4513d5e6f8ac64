"""`data preview`: what the model sees of a participant's examples, and what of it is learned."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.data_arguments import (
    BadRowsOption,
    ColumnOption,
    DataOption,
    EncodingOption,
    LabelOption,
    SeparatorOption,
    data_options,
)
from flexlora_client.cli.options import ConnectionOptions, JsonOption, as_anyone, with_connection
from flexlora_client.errors import BadInput, describe_validation_error
from flexlora_shared.messages.runs import RunSpec

if TYPE_CHECKING:
    from flexlora_client.training.encoding.preview import Shown
    from flexlora_client.training.encoding.survey import Survey

LEARNED = ("[[", "]]")  # around what is learned, where there are no colours

data = typer.Typer(help="Look at training data.", no_args_is_help=True)


@data.command("preview")
@with_connection
def preview(
    run: Annotated[str, typer.Argument(help="Name of the run, or the file of its definition.", metavar="RUN")],
    path: DataOption,
    column: ColumnOption = None,
    label: LabelOption = None,
    encoding: EncodingOption = None,
    separator: SeparatorOption = None,
    bad_rows: BadRowsOption = "refuse",
    model: Annotated[str | None, typer.Option("--model", help="Local path of the base model. \\[the run's id]")] = None,
    count: Annotated[int, typer.Option("-n", "--examples", min=0, help="How many examples to show.")] = 5,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Show examples as the model sees them, what is not learned dimmed, and count what is cut; loads no weights."""
    require_agent_extra()
    spec = _spec(run, connection)
    files = data_options(path, None, 0.0, column, label, encoding, separator, bad_rows)
    from flexlora_client.training.data.loading import load_data  # training libraries take seconds to import
    from flexlora_client.training.encoding.encoder import Encoder
    from flexlora_client.training.encoding.preview import show
    from flexlora_client.training.encoding.survey import survey
    from flexlora_client.training.models.load_model import load_encoding

    encoder = Encoder.of(spec, *load_encoding(spec, model))
    loaded = load_data(files, spec.model, folder=connection.folder if connection.folder.is_dir() else None)
    _, *notes = loaded.lines()
    shown = [show(encoder, example, spec.model.labels) for example in loaded.train[:count]]
    found = survey(encoder, loaded.train)
    if as_json:
        print(json.dumps(_as_fields(spec, encoder.max_length, found, shown, notes), ensure_ascii=False))
    else:
        _print(shown, [*notes, *_counts(found, encoder.max_length)])


def _spec(run: str, connection: ConnectionOptions) -> RunSpec:
    file = Path(run)
    if not file.is_file():
        with as_anyone(connection) as api:
            return api.run(run).spec
    try:
        return RunSpec.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{file} is no run's definition: {describe_validation_error(error)}") from None


def _as_fields(
    spec: RunSpec, max_length: int, found: "Survey", shown: Sequence["Shown"], notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "run": spec.name,
        "max_length": max_length,
        "notes": [note.strip() for note in notes],
        "counts": asdict(found),
        "examples": [asdict(example) for example in shown],
    }


def _print(shown: Sequence["Shown"], lines: Sequence[str]) -> None:
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    for number, example in enumerate(shown, 1):
        for row in example.rows:
            text = Text()
            for piece in row.pieces:
                marked = piece.text if console.is_terminal or not piece.learned else piece.text.join(LEARNED)
                text.append(marked, style="bold" if piece.learned else "dim")
            console.print(text)
        console.print(Text(f"-- example {number}: {example.summary}\n", style="cyan"))
    for line in lines:
        console.print(line)


def _counts(found: "Survey", max_length: int) -> list[str]:
    lines = [f"{found.examples} examples, {found.tokens} tokens, {found.learned} of them to learn"]
    if not found.tokens and found.learned:  # images
        lines = [f"{found.examples} examples, each with a label to learn"]
    if found.lengths is not None and found.lengths.most:
        n = found.lengths
        lines.append(
            f"length in tokens: least {n.least}, median {n.median}, 95 % up to {n.p95}, most {n.most}; room for {max_length}"
        )
    if found.cut:
        lines.append(
            f"cut: {found.cut} examples ({found.cut / found.examples:.1%}) lose {found.cut_tokens} tokens, "
            f"{found.dropped_turns} whole turns among them"
        )
    if found.empty:
        lines.append(
            f"left out: {found.empty} examples ({found.empty / found.examples:.1%}); the first: {found.reason}"
        )
    return lines
