"""Options that several commands share, and the API connection made from them."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from flexlora_client import credentials
from flexlora_client.cli.option_groups import expand_options
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, Backoff, RetryPolicy
from flexlora_client.coordinator_api.tls import Tls, read_authorities
from flexlora_client.errors import BadInput, ClientError, describe_validation_error
from flexlora_shared.messages.base import Message

KEY_VARIABLE = "FLEXLORA_OPERATOR_KEY"
M = TypeVar("M", bound=Message)

RunArgument = Annotated[str, typer.Argument(help="Name of the run.", metavar="RUN")]
RankOption = Annotated[int, typer.Option("--rank", min=1, help="LoRA rank; one of those the run allows.")]
RankPatternOption = Annotated[
    list[str] | None,
    typer.Option("--rank-pattern", metavar="MODULE=RANK", help="Another rank for modules of this name; repeatable."),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the credentials and the work. [$FLEXLORA_HOME, else the user's settings]"),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option("--ca-file", envvar="FLEXLORA_CA_FILE", help="PEM file of the authority that signed the certificate."),
]
ClientCertOption = Annotated[
    Path | None,
    typer.Option(
        "--client-cert",
        envvar="FLEXLORA_CLIENT_CERT",
        help="PEM file of a client certificate, for a coordinator that asks for one.",
    ),
]
ClientKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--client-key",
        envvar="FLEXLORA_CLIENT_KEY",
        help="PEM file of the client certificate's key. \\[in the certificate's file]",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="FLEXLORA_URL", help="Address of the coordinator. \\[a participant's: the one enrolled at]"
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"File that holds the operator's key; else ${KEY_VARIABLE}."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs on stdout.")]


@dataclass(frozen=True)
class ConnectionOptions:
    """The options that say which coordinator to call, and with which key; see `with_connection`."""

    url: UrlOption = None
    key_file: KeyFileOption = None
    home: HomeOption = None
    ca_file: CaFileOption = None
    client_cert: ClientCertOption = None
    client_key: ClientKeyOption = None

    @property
    def folder(self) -> Path:
        """The home folder."""
        return self.home or credentials.default_home()

    @property
    def tls(self) -> Tls:
        """What the options say of TLS. Raises: BadInput."""
        authorities = read_authorities(self.ca_file) if self.ca_file else None
        return Tls(authorities, self.client_cert, self.client_key)


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `ConnectionOptions`, in the place of its parameter `connection`."""
    return expand_options(command, "connection", ConnectionOptions)


def connect(url: str, key: str | None, tls: Tls, backoff: Backoff = COMMAND_BACKOFF) -> Api:
    """An API client for the coordinator at `url`, authenticated by `key`; reports retries on stderr."""

    def on_wait(error: ClientError, delay: float) -> None:
        print(f"{error}; trying again in {delay:.1f} s", file=sys.stderr)

    return Api(Http(url, key, tls), RetryPolicy(backoff, on_wait=on_wait))


def as_participant(connection: ConnectionOptions) -> Api:
    """An API client with the participant's key.

    Raises:
        BadInput: the home folder holds no credentials, or is enrolled at another address than --url.
    """
    identity = credentials.load(connection.folder)
    if connection.url and connection.url.rstrip("/") != identity.url:
        raise BadInput(
            f"{connection.folder} is enrolled at {identity.url}, not at {connection.url}; "
            "name another --home, or the operator's key"
        )
    tls = identity.tls(connection.ca_file)
    if connection.client_cert:
        tls = replace(tls, certificate=connection.client_cert, key=connection.client_key)
    return connect(identity.url, identity.api_key, tls)


def as_operator(connection: ConnectionOptions) -> Api:
    """An API client with the operator's key.

    Raises:
        BadInput: no key is given, or no address.
    """
    key = _operator_key(connection)
    if key is None:
        raise BadInput(f"no operator key; set {KEY_VARIABLE} or name its file with --key-file")
    return connect(_operator_url(connection), key, connection.tls)


def as_anyone(connection: ConnectionOptions) -> Api:
    """An API client with the operator's key where one is given, else with the participant's."""
    key = _operator_key(connection)
    return as_participant(connection) if key is None else connect(_operator_url(connection), key, connection.tls)


def _operator_key(connection: ConnectionOptions) -> str | None:
    if connection.key_file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        return connection.key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the key in {connection.key_file}: {error}") from None


def _operator_url(connection: ConnectionOptions) -> str:
    """The address for the operator's key; never that of a participant's credentials, which must not get this key."""
    if connection.url:
        return connection.url
    raise BadInput("which coordinator? give its address with --url or in FLEXLORA_URL")


def parse_rank_pattern(options: list[str] | None) -> dict[str, int]:
    """`MODULE=RANK` options as PEFT's `rank_pattern`."""
    pattern: dict[str, int] = {}
    for item in options or []:
        module, separator, rank = item.rpartition("=")
        if not (separator and module and rank.isdecimal()):
            raise typer.BadParameter(f"{item!r} is not of the form MODULE=RANK", param_hint="--rank-pattern")
        pattern[module] = int(rank)
    return pattern


def build_message(kind: type[M], **fields: object) -> M:
    """Build a message from options. Raises: typer.BadParameter."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise typer.BadParameter(describe_validation_error(error)) from None
