"""The operator's commands over REST: runs, enrollment tokens, clients."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from flexlora_client.cli import rendering
from flexlora_client.cli.options import (
    ConnectionOptions,
    JsonOption,
    RunArgument,
    as_anyone,
    as_operator,
    build_message,
    with_connection,
)
from flexlora_client.coordinator_api.calls import Action
from flexlora_client.errors import BadInput, UsageError, describe_validation_error
from flexlora_shared.messages.clients import TokenRequest
from flexlora_shared.messages.runs import RunSpec, StartFrom

runs = typer.Typer(help="Define and steer runs.", no_args_is_help=True)
tokens = typer.Typer(help="Enrollment tokens.", no_args_is_help=True)
clients = typer.Typer(help="Enrolled clients.", no_args_is_help=True)


@runs.command("create")
@with_connection
def create(
    file: Annotated[Path, typer.Argument(help="The run's definition, JSON; `describe` prints a start.")],
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from", metavar="RUN\\[:ROUND]", help="Begin with what this run published. \\[its last round]"
        ),
    ] = None,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Define a run; it waits in DRAFT until it is started."""
    spec = _spec(file)
    if start_from is not None:
        spec = spec.model_copy(update={"start_from": _start(start_from)})
    with as_operator(connection) as api:
        detail = api.create_run(spec)
    for warning in detail.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    rendering.show(
        detail, f"run {detail.status.name} is defined; start it: flexlora-client runs start {spec.name}", as_json
    )


def _change(action: Action) -> None:
    @with_connection
    def command(
        run: RunArgument,
        *,
        connection: ConnectionOptions,
        as_json: JsonOption = False,
    ) -> None:
        with as_operator(connection) as api:
            status = api.change_run(run, action)
        rendering.show(status, f"run {status.name} is {status.state}", as_json)

    runs.command(action, help=f"{action.capitalize()} a run.")(command)


_change("start")
_change("pause")
_change("resume")
_change("cancel")


@runs.command("list")
@with_connection
def list_runs(
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Every run, newest first."""
    with as_anyone(connection) as api:
        run_list = api.runs()
    rendering.show(run_list, rendering.run_list(run_list), as_json)


@runs.command("show")
@with_connection
def show(
    run: RunArgument,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """A run's status and definition."""
    with as_anyone(connection) as api:
        detail = api.run(run)
    rendering.show(detail, rendering.run_detail(detail), as_json)


@with_connection
def retry(
    run: RunArgument,
    number: Annotated[int, typer.Argument(min=1, help="The failed round.", metavar="ROUND")],
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="UPLOAD", help="Leave this upload out for good; repeatable."),
    ] = None,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Aggregate a failed round again, without the uploads that break it."""
    with as_operator(connection) as api:
        summary = api.retry_round(run, number, tuple(exclude or ()))
    rendering.show(summary, f"round {summary.number} of run {run} is {summary.state}: {summary.waiting_for}", as_json)


@with_connection
def rollback(
    run: RunArgument,
    to: Annotated[int, typer.Option("--to", min=0, metavar="ROUND", help="The round to go back to.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Publish an earlier round's adapter again, as a new round, and go on from it."""
    if not yes:
        _confirm(
            f"Abandon the round under way of run {run}, drop its updates, and publish the adapter of round {to} again?"
        )
    with as_operator(connection) as api:
        status = api.roll_back(run, to)
    told = (
        f"run {run} is rolled back: round {status.rounds_published} publishes the adapter of round {to}; {status.state}"
    )
    rendering.show(status, told, as_json)


@tokens.command("create")
@with_connection
def create_token(
    expires_in: Annotated[int, typer.Option("--expires-in", min=1, help="Seconds the token is good for.")] = 86_400,
    note: Annotated[str, typer.Option("--note", help="Who it is for, in your own words.")] = "",
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """A token that enrolls one participant; shown once."""
    request = build_message(TokenRequest, expires_in=expires_in, note=note)
    with as_operator(connection) as api:
        token = api.create_token(request)
    rendering.show(token, token.token, as_json)


@clients.command("list")
@with_connection
def list_clients(
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Every client ever enrolled."""
    with as_operator(connection) as api:
        client_list = api.clients()
    rendering.show(client_list, rendering.client_list(client_list), as_json)


@clients.command("revoke")
@with_connection
def revoke(
    client: Annotated[str, typer.Argument(help="The client's id.", metavar="CLIENT")],
    *,
    connection: ConnectionOptions,
) -> None:
    """End a client's key at once."""
    with as_operator(connection) as api:
        api.revoke(client)
    print(f"client {client} is revoked")


def _confirm(question: str) -> None:
    """Go on where somebody at the terminal says yes. Raises: UsageError."""
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm the rollback; say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed; nothing was changed")


def _start(text: str) -> StartFrom:
    run, colon, number = text.partition(":")
    if colon and not number.isdecimal():
        raise BadInput(f"--start-from {text}: {number!r} is no round; write RUN, or RUN:ROUND")
    return build_message(StartFrom, run=run, round=int(number) if colon else None)


def _spec(file: Path) -> RunSpec:
    try:
        return RunSpec.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    except ValidationError as error:
        raise BadInput(f"{file} defines no run: {describe_validation_error(error)}") from None
