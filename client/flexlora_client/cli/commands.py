"""The commands of `flexlora-client`, and how one ends: with an exit code of `errors.Exit`, no traceback."""

import sys
from typing import Annotated

import typer

from flexlora_client.cli import data, describe, doctor, export, logs, operator, participant, text, watch
from flexlora_client.errors import ClientError, TrainingError, exit_code, sentence_of
from flexlora_shared.versions import version_line

app = typer.Typer(
    help="Take part in federated LoRA fine-tuning, watch runs, export results, operate a coordinator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("enroll")(participant.enroll)
app.command("describe")(describe.describe)
app.command("run")(participant.run)
app.command("doctor")(doctor.as_doctor(participant.run))
app.command("status")(watch.status)
app.command("logs")(logs.logs)
app.command("rounds")(watch.rounds)
app.command("export")(export.export)
app.command("generate")(text.generate)
app.command("chat")(text.chat)
app.command("retry")(operator.retry)
app.command("rollback")(operator.rollback)
app.add_typer(data.data, name="data")
app.add_typer(operator.runs, name="runs")
app.add_typer(operator.tokens, name="tokens")
app.add_typer(operator.clients, name="clients")
app.add_typer(participant.keys, name="keys")


def _version(requested: bool) -> None:
    if requested:
        print(version_line("flexlora-client"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Show the versions of program and protocol, and exit."
        ),
    ] = False,
) -> None:
    """What goes before the commands."""


def run_command() -> None:
    """Run the command that the arguments name; an error is one sentence on stderr. Raises: SystemExit."""
    try:
        app()
    except (ClientError, TrainingError, OSError) as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
