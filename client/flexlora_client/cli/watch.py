"""Watching runs and rounds: for the operator and for every participant."""

from typing import Annotated

import typer

from flexlora_client.cli import rendering
from flexlora_client.cli.options import (
    ConnectionOptions,
    JsonOption,
    RunArgument,
    as_anyone,
    with_connection,
)


@with_connection
def status(
    run: Annotated[
        str | None, typer.Argument(help="Name of the run; without it, all are listed.", metavar="RUN")
    ] = None,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Where the runs stand."""
    with as_anyone(connection) as api:
        if run is None:
            found = api.runs()
            rendering.show(found, rendering.run_list(found), as_json)
        else:
            told = api.run(run).status
            rendering.show(told, rendering.run_status(told), as_json)


@with_connection
def rounds(
    run: RunArgument,
    number: Annotated[int | None, typer.Argument(help="One round; without it, all are listed.", metavar="N")] = None,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """A run's rounds: participants, losses, energy kept."""
    with as_anyone(connection) as api:
        if number is None:
            found = api.rounds(run)
            rendering.show(found, rendering.round_list(found), as_json)
        else:
            detail = api.round(run, number)
            rendering.show(detail, rendering.round_detail(detail), as_json)
