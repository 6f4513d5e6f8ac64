"""Watching runs and rounds: for the operator and for every participant."""

from typing import Annotated

import typer

from flexlora_client.cli import rendering
from flexlora_client.cli.options import (
    CaFileOption,
    HomeOption,
    JsonOption,
    KeyFileOption,
    Place,
    RunArgument,
    UrlOption,
    as_anyone,
)


def status(
    run: Annotated[
        str | None, typer.Argument(help="Name of the run; without it, all are listed.", metavar="RUN")
    ] = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = None,
    ca_file: CaFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where the runs stand."""
    with as_anyone(Place(url, key_file, home, ca_file)) as api:
        if run is None:
            found = api.runs()
            rendering.show(found, rendering.run_list(found), as_json)
        else:
            told = api.run(run).status
            rendering.show(told, rendering.run_status(told), as_json)


def rounds(
    run: RunArgument,
    number: Annotated[int | None, typer.Argument(help="One round; without it, all are listed.", metavar="N")] = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    home: HomeOption = None,
    ca_file: CaFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """A run's rounds: participants, losses, energy kept."""
    with as_anyone(Place(url, key_file, home, ca_file)) as api:
        if number is None:
            found = api.rounds(run)
            rendering.show(found, rendering.round_list(found), as_json)
        else:
            detail = api.round(run, number)
            rendering.show(detail, rendering.round_detail(detail), as_json)
