"""The commands `status` and `rounds`, for the operator and for participants."""

import json
from typing import Annotated

import typer

from flexlora_client.agent import diary
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
    """Where the runs stand, and this machine's participant in them."""
    with as_anyone(connection) as api:
        if run is None:
            runs, here = api.runs(), diary.places(connection.folder)
            if as_json:
                print(json.dumps({**runs.model_dump(mode="json"), "here": [place.model_dump() for place in here]}))
                return
            rendering.show(runs, rendering.run_list(runs), as_json)
            if here:
                rendering.show(runs, rendering.places(here, connection.folder), as_json)
        else:
            run_status = api.run(run).status
            rendering.show(run_status, rendering.run_status(run_status), as_json)


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
            round_list = api.rounds(run)
            rendering.show(round_list, rendering.round_list(round_list), as_json)
        else:
            detail = api.round(run, number)
            rendering.show(detail, rendering.round_detail(detail), as_json)
