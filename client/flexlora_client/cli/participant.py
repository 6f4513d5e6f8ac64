"""The participant's commands: enroll, take part in a run, rotate the key."""

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from flexlora_client import credentials
from flexlora_client.cli import doctor
from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.compute import AutoRankOption, ComputeOptions, parse_rank, with_compute
from flexlora_client.cli.data_arguments import (
    BadRowsOption,
    ColumnOption,
    DataOption,
    EncodingOption,
    HeldoutFractionOption,
    HeldoutOption,
    LabelOption,
    SeparatorOption,
    data_options,
)
from flexlora_client.cli.options import (
    CaFileOption,
    ClientCertOption,
    ClientKeyOption,
    ConnectionOptions,
    HomeOption,
    JsonOption,
    RankPatternOption,
    RunArgument,
    as_participant,
    build_message,
    connect,
    parse_rank_pattern,
)
from flexlora_client.credentials import Identity
from flexlora_client.errors import BadInput
from flexlora_client.training.contract import Compute
from flexlora_shared.messages.clients import Enrollment

keys = typer.Typer(help="The participant's own API key.", no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Keep `rotate` a subcommand although it is the only one."""


def enroll(
    url: Annotated[str, typer.Argument(help="Address of the coordinator.", metavar="URL")],
    token: Annotated[str, typer.Option("--token", envvar="FLEXLORA_TOKEN", help="One-time enrollment token.")],
    name: Annotated[str | None, typer.Option("--name", help="Name the operator sees. \\[this machine's name]")] = None,
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


@with_compute
def run(
    run: RunArgument,
    rank: AutoRankOption,
    data: DataOption,
    rank_pattern_: RankPatternOption = None,
    hold_rank: Annotated[
        int | None,
        typer.Option(
            "--hold-rank",
            min=1,
            help="Hold a slice of this rank, and train its first --rank directions; the rest is frozen. [--rank]",
        ),
    ] = None,
    heldout: HeldoutOption = None,
    heldout_fraction: HeldoutFractionOption = None,
    column: ColumnOption = None,
    label: LabelOption = None,
    encoding: EncodingOption = None,
    separator: SeparatorOption = None,
    bad_rows: BadRowsOption = "refuse",
    answers: Annotated[
        int, typer.Option("--answers", min=0, help="Held-out prompts answered by generating text, per evaluation.")
    ] = 50,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="A metric of your own, package.module:function of predictions and references.",
        ),
    ] = None,
    evaluation_share: Annotated[
        float | None,
        typer.Option(
            "--evaluation-share", min=0.01, help="Most of a training's time that its evaluations may take. [0.25]"
        ),
    ] = None,
    keep_local: Annotated[
        Literal["head", "B"] | None,
        typer.Option(
            "--keep-local",
            help="Keep these tensors to yourself: head (those trained in full) or B (lora_B, of fedavg).",
        ),
    ] = None,
    allow_extra: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-extra",
            metavar="TENSOR",
            help="Agree that the run trains this tensor in full, beside a classifier's head; repeatable.",
        ),
    ] = None,
    role: Annotated[
        Literal["trainer", "evaluator"],
        typer.Option("--role", help="evaluator: measure every adapter on all of --data, and never train."),
    ] = "trainer",
    model: Annotated[str | None, typer.Option("--model", help="Local path of the base model. \\[the run's id]")] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            "--trainer",
            metavar="NAME",
            help="Another training loop: package.module:Class, or one of an installed package.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps; several GPUs: cuda:0,cuda:1 or cuda:all.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of training.")] = None,
    compute: ComputeOptions = ComputeOptions(),
    max_rounds: Annotated[
        int | None,
        typer.Option("--max-rounds", min=1, help="Stop after this many accepted updates; of an evaluator, adapters."),
    ] = None,
    max_rate: Annotated[
        int | None,
        typer.Option("--max-rate", min=1, help="Most kB a second that slices and updates take of the line, each way."),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            "--track",
            metavar="NAME",
            help="Give this participant's figures to tensorboard (tensorboard=FOLDER), mlflow or wandb.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", hidden=True, help="Do what `doctor` does.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Take part in a run until it completes."""
    if role == "evaluator":
        _refuse_beside_evaluator(
            {
                "--heldout": heldout,
                "--heldout-fraction": heldout_fraction,
                "--trainer": trainer,
                "--keep-local": keep_local,
                "--evaluation-share": evaluation_share,
            }
        )
        heldout_fraction = 0.0
    files = data_options(data, heldout, heldout_fraction, column, label, encoding, separator, bad_rows)
    require_agent_extra()
    from flexlora_client.agent import assemble  # training libraries take seconds to import

    act = doctor.diagnose if check else assemble.take_part
    act(
        home or credentials.default_home(),
        ca_file,
        assemble.RunOptions(
            run=run,
            rank=parse_rank(rank),
            rank_pattern=parse_rank_pattern(rank_pattern_),
            hold_rank=hold_rank,
            data=files,
            answers=answers,
            model_path=model,
            trainer=trainer,
            device=device,
            threads=threads,
            compute=Compute(**asdict(compute)),
            max_rounds=max_rounds,
            metric=metric,
            evaluation_share=0.25 if evaluation_share is None else evaluation_share,
            keep_local=keep_local,
            allowed_extra=tuple(allow_extra or ()),
            evaluates_only=role == "evaluator",
            track=track,
            max_rate=None if max_rate is None else max_rate * 1000.0,
        ),
        as_json=as_json,
    )


def _refuse_beside_evaluator(options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise typer.BadParameter(f"an evaluator only measures, on all of --data; leave out {', '.join(given)}")


def _machine_name() -> str:
    """The host's name in the characters a participant's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).lstrip("._-")[:64] or "participant"
