"""The commands of `flexlora-sim`, and how one ends: with an exit code, no traceback."""

import sys
from typing import Annotated

import typer

from flexlora_client.errors import ClientError, TrainingError, exit_code, sentence_of
from flexlora_shared.versions import version_line
from flexlora_simulation.cli import check, compare, run, show
from flexlora_simulation.errors import SimulationError

app = typer.Typer(
    help="Simulate federations of thousands of participants on this machine, with FlexLoRA's own coordinator and agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("show")(show.show)
app.command("compare")(compare.compare)
app.command("check")(check.check)
app.command("workloads")(check.workloads)


def _version(requested: bool) -> None:
    if requested:
        print(version_line("flexlora-sim"))
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
    except (SimulationError, ClientError, TrainingError, OSError) as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
