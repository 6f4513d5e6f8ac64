"""The command line `flexlora-client`. An error is one sentence on stderr and an exit code of `errors.Exit`, no traceback."""

import signal
import sys
from typing import Annotated

import typer

from flexlora_client.cli import describe, doctor, export, logs, operator, participant, watch
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
app.command("retry")(operator.retry)
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


def main() -> None:
    """Entry point of `flexlora-client`."""
    # SIGTERM ends the agent like Ctrl-C: finished work is already on disk
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except (ClientError, TrainingError, OSError) as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
