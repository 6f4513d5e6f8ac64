"""Options that several commands share, and the connection they lead to."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from flexlora_client import credentials
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import BRIEF, Backoff, Retry
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
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="FLEXLORA_URL", help="Address of the coordinator. [a participant's: the one enrolled at]"
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"File that holds the operator's key; else ${KEY_VARIABLE}."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs on stdout.")]


@dataclass(frozen=True)
class Place:
    """The options that say which coordinator, as given."""

    url: str | None = None
    key_file: Path | None = None
    home: Path | None = None
    ca_file: Path | None = None

    @property
    def folder(self) -> Path:
        """The home folder."""
        return self.home or credentials.default_home()


def connect(url: str, key: str | None, ca_file: Path | None, backoff: Backoff = BRIEF) -> Api:
    """The calls of the coordinator at `url` under `key`; waits between attempts are told on stderr."""

    def on_wait(error: ClientError, delay: float) -> None:
        print(f"{error}; trying again in {delay:.1f} s", file=sys.stderr)

    return Api(Http(url, key, ca_file), Retry(backoff, on_wait=on_wait))


def as_participant(place: Place) -> Api:
    """Under the key this home was enrolled with."""
    identity = credentials.load(place.folder)
    if place.url and place.url.rstrip("/") != identity.url:
        raise BadInput(
            f"{place.folder} is enrolled at {identity.url}, not at {place.url}; name another --home, or the operator's key"
        )
    return connect(identity.url, identity.api_key, place.ca_file)


def as_operator(place: Place) -> Api:
    """Under the operator's key.

    Raises:
        BadInput: no key is given, or no address.
    """
    key = _operator_key(place)
    if key is None:
        raise BadInput(f"no operator key; set {KEY_VARIABLE} or name its file with --key-file")
    return connect(_url(place), key, place.ca_file)


def as_anyone(place: Place) -> Api:
    """Under the operator's key where one is given, else as the participant."""
    key = _operator_key(place)
    return as_participant(place) if key is None else connect(_url(place), key, place.ca_file)


def _operator_key(place: Place) -> str | None:
    if place.key_file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        return place.key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the key in {place.key_file}: {error}") from None


def _url(place: Place) -> str:
    """The operator's coordinator; never the one a participant of this machine is enrolled at: it must not get the key."""
    if place.url:
        return place.url
    raise BadInput("which coordinator? give its address with --url or in FLEXLORA_URL")


def rank_pattern(given: list[str] | None) -> dict[str, int]:
    """`MODULE=RANK` options as PEFT's `rank_pattern`."""
    pattern: dict[str, int] = {}
    for item in given or []:
        module, separator, rank = item.rpartition("=")
        if not (separator and module and rank.isdecimal()):
            raise typer.BadParameter(f"{item!r} is not of the form MODULE=RANK", param_hint="--rank-pattern")
        pattern[module] = int(rank)
    return pattern


def message(kind: type[M], **fields: object) -> M:
    """A message built from the command line; what does not fit is a usage error."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise typer.BadParameter(describe_validation_error(error)) from None
