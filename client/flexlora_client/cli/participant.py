"""The participant's commands: enroll, take part in a run, rotate the key."""

import platform
import re
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from flexlora_client import credentials
from flexlora_client.cli import doctor
from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.options import (
    CaFileOption,
    ClientCertOption,
    ClientKeyOption,
    ConnectionOptions,
    HomeOption,
    JsonOption,
    RankOption,
    RankPatternOption,
    RunArgument,
    as_participant,
    build_message,
    connect,
    parse_rank_pattern,
)
from flexlora_client.credentials import Identity
from flexlora_client.errors import BadInput
from flexlora_shared.messages.clients import Enrollment

keys = typer.Typer(help="The participant's own API key.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Keep `rotate` a subcommand although it is the only one."""


def enroll(
    url: Annotated[str, typer.Argument(help="Address of the coordinator.", metavar="URL")],
    token: Annotated[str, typer.Option("--token", envvar="FLEXLORA_TOKEN", help="One-time enrollment token.")],
    name: Annotated[str | None, typer.Option("--name", help="Name the operator sees. [this machine's name]")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give up the credentials this home holds.")] = False,
    home: HomeOption = None,
    ca_file: CaFileOption = None,
    client_cert: ClientCertOption = None,
    client_key: ClientKeyOption = None,
) -> None:
    """Enroll at a coordinator: redeem a token, keep the key in the home folder, with how TLS is spoken with it."""
    connection = ConnectionOptions(home=home, ca_file=ca_file, client_cert=client_cert, client_key=client_key)
    if credentials.is_enrolled(connection.folder) and not replace:
        raise BadInput(
            f"{connection.folder} holds credentials already; use another --home, or --replace to give them up"
        )
    if urlsplit(url).scheme == "http" and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
        print("warning: without https the key travels where others can read it", file=sys.stderr)
    enrollment = build_message(Enrollment, token=token, name=name or _machine_name())
    credentials.check_writable(connection.folder)  # the token can be redeemed only once
    tls = connection.tls
    with connect(url, None, tls) as api:
        issued = api.enroll(enrollment)
    identity = Identity(
        url=url.rstrip("/"),
        client_id=issued.client_id,
        name=issued.name,
        api_key=issued.api_key,
        authorities=tls.authorities,
        client_cert=str(client_cert.resolve()) if client_cert else None,
        client_key=str(client_key.resolve()) if client_key else None,
    )
    path = credentials.save(connection.folder, identity)
    print(f"enrolled as {issued.name} ({issued.client_id}); credentials in {path}")


@keys.command("rotate")
def rotate(home: HomeOption = None, ca_file: CaFileOption = None) -> None:
    """Replace this participant's API key; the old one ends when the new one is first used."""
    connection = ConnectionOptions(home=home, ca_file=ca_file)
    identity = credentials.load(connection.folder)
    credentials.check_writable(connection.folder)
    with as_participant(connection) as api:
        issued = api.rotate_key()
    path = credentials.save(connection.folder, identity.model_copy(update={"api_key": issued.api_key}))
    print(f"new key for {issued.name} in {path}")


def run(
    run: RunArgument,
    rank: RankOption,
    data: Annotated[Path, typer.Option("--data", help="Training examples: JSONL, CSV or Parquet.")],
    rank_pattern_: RankPatternOption = None,
    heldout: Annotated[
        Path | None, typer.Option("--heldout", help="Held-out examples, in a file of their own.")
    ] = None,
    heldout_fraction: Annotated[
        float | None,
        typer.Option("--heldout-fraction", help="Share of --data to hold out; 0: no evaluation. [0.1]"),
    ] = None,
    answers: Annotated[
        int, typer.Option("--answers", min=0, help="Held-out prompts answered by generating text, per evaluation.")
    ] = 50,
    model: Annotated[str | None, typer.Option("--model", help="Local path of the base model. [the run's id]")] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            "--trainer",
            metavar="NAME",
            help="Another training loop: package.module:Class, or one of an installed package.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of training.")] = None,
    max_rounds: Annotated[
        int | None, typer.Option("--max-rounds", min=1, help="Stop after this many accepted updates.")
    ] = None,
    max_rate: Annotated[
        int | None,
        typer.Option("--max-rate", min=1, help="Most kB a second that slices and updates take of the line, each way."),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="FOLDER", help="Write this participant's metrics for TensorBoard."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", hidden=True, help="Do what `doctor` does.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Take part in a run until it completes."""
    if heldout is not None and heldout_fraction is not None:
        raise typer.BadParameter("give --heldout or --heldout-fraction, not both")
    require_agent_extra()
    from flexlora_client.agent import assemble  # training libraries take seconds to import

    act = doctor.diagnose if check else assemble.take_part
    act(
        home or credentials.default_home(),
        ca_file,
        assemble.RunOptions(
            run=run,
            rank=rank,
            rank_pattern=parse_rank_pattern(rank_pattern_),
            data=data,
            heldout=heldout,
            heldout_fraction=0.1 if heldout_fraction is None else heldout_fraction,
            answers=answers,
            model_path=model,
            trainer=trainer,
            device=device,
            threads=threads,
            max_rounds=max_rounds,
            tensorboard=tensorboard,
            max_rate=None if max_rate is None else max_rate * 1000.0,
        ),
        as_json=as_json,
    )


def _machine_name() -> str:
    """The host's name in the characters a participant's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).lstrip("._-")[:64] or "participant"
