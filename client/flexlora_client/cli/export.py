"""The command `export`: an adapter, published or the participant's own, in the form asked for; or a round's record."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from flexlora_client.agent.results import SPEC_FILE, Results
from flexlora_client.agent.slice_cache import request_for_round
from flexlora_client.cli.export_options import FormOptions, with_form
from flexlora_client.cli.options import (
    ConnectionOptions,
    JsonOption,
    RankPatternOption,
    RunArgument,
    as_anyone,
    parse_rank_pattern,
    with_connection,
)
from flexlora_client.cli.record import save_record
from flexlora_client.errors import BadInput
from flexlora_client.export.limits import adapter_notes
from flexlora_client.export.model_card import CARD_FILE, Form, digests_of, model_card
from flexlora_client.export.origin import Origin, published, smallest_rank, trained_here
from flexlora_client.files import make_folder, write_whole
from flexlora_client.training.contract import CONFIG_FILE
from flexlora_shared.messages.runs import RunSpec


@with_form
@with_connection
def export(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; it must not hold anything yet.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="LoRA rank of the published adapter.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Instead of --rank: the smallest that keeps this share of the update, as 0.95.",
        ),
    ] = None,
    source: Annotated[
        Literal["global", "own", "best"],
        typer.Option(
            "--from",
            help="A published adapter, the best of your own training, or the better of that and the one served last.",
        ),
    ] = "global",
    number: Annotated[int | None, typer.Option("--round", min=0, help="Round. \\[the last published]")] = None,
    rank_pattern_: RankPatternOption = None,
    form: FormOptions = FormOptions(),
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            help="File for the round's record, with which others aggregate it again; for the operator, also without -o.",
        ),
    ] = None,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Save an adapter as a PEFT folder that other programs load, too, or the model with it merged in; or a round's record."""
    chosen = rank is not None or energy is not None or bool(rank_pattern_)
    if output is None:
        _check_record_alone(record, other=chosen or form != FormOptions())
    else:
        _check(output, form)
        _check_rank(rank, energy, source, trained_ranks=not (chosen or number is not None), pattern=bool(rank_pattern_))
    if record is not None:
        save_record(connection, run, number, source, record, as_json=as_json and output is None)
    if output is None:
        return
    if source != "global":
        results = Results(connection.folder / "runs" / run)
        origin, made = _export(output, lambda folder: trained_here(results, source, folder), form)
    else:
        with as_anyone(connection) as api:
            detail = api.run(run)
            round_number = detail.status.rounds_published if number is None else number
            if energy is not None:
                rank = smallest_rank(api.round(run, round_number).summary.energy_kept, energy)
            assert rank is not None  # one of both is given
            request = request_for_round(detail.spec, round_number, rank, parse_rank_pattern(rank_pattern_))
            origin, made = _export(output, lambda folder: published(api, request, round_number, folder), form)
    _tell(run, output, origin, made, chosen_by_energy=energy is not None, as_json=as_json)


def _check_record_alone(record: Path | None, *, other: bool) -> None:
    """Check the options of a command that saves no adapter; `other`: whether some of them are for one."""
    if record is None:
        raise typer.BadParameter("what shall be saved? give --output for an adapter, --record for a round's record")
    if other:
        raise typer.BadParameter("ranks and forms are for an adapter: give --output for one, or leave them out")


def _check(output: Path, form: FormOptions) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{output} exists and is not an empty folder; name another one")
    form.check()


def _check_rank(rank: int | None, energy: float | None, source: str, *, trained_ranks: bool, pattern: bool) -> None:
    """Check that one rank is asked for; `trained_ranks`: no option names a rank or a round, they are those that were trained."""
    if source != "global":
        if not trained_ranks:
            raise typer.BadParameter(f"--from {source} takes the rank and the round that were trained; leave them out")
    elif (rank is None) == (energy is None):
        raise typer.BadParameter(
            "which rank? give either --rank or --energy, or --from own for the adapter of your own training"
        )
    elif energy is not None and pattern:
        raise typer.BadParameter("--energy chooses one rank for all modules; leave out --rank-pattern, or give --rank")


def _tell(run: str, output: Path, origin: Origin, form: Form, *, chosen_by_energy: bool, as_json: bool) -> None:
    if as_json:
        told = {"run": run, "round": origin.round, "rank": origin.rank, "own": origin.own, "sha256": origin.sha256}
        more = {"form": form.kind, "energy_kept": origin.energy, "notes": form.notes, "folder": str(output)}
        print(json.dumps(told | more))
        return
    own = ", your own," if origin.own else ""
    kept = f", which keeps {100 * origin.energy:.2f} % of the energy," if chosen_by_energy and origin.energy else ""
    print(f"round {origin.round} of {run} at rank {origin.rank}{own}{kept} is in {output}")
    for note in form.notes:
        print(f"note: {note}", file=sys.stderr)


def _export(output: Path, fetch: Callable[[Path], Origin], options: FormOptions) -> tuple[Origin, Form]:
    """Fill a temporary folder beside `output`, then rename it: a cut or a crash leaves no half folder under its name."""
    make_folder(output.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder = make_folder(temporary / output.name)  # mkdtemp's own is closed to others
        origin = fetch(folder)
        form = _form(folder, origin.spec, options)
        if form.kind != "merged":
            write_whole(folder / SPEC_FILE, origin.spec.model_dump_json(indent=2).encode())
        write_whole(folder / CARD_FILE, model_card(origin, form, digests_of(folder)).encode())
        folder.replace(output)
        return origin, form
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _form(folder: Path, spec: RunSpec, options: FormOptions) -> Form:
    """Give the adapter in `folder` the form asked for."""
    if options.exact:
        return Form("exact", "as it is served", adapter_notes(json.loads((folder / CONFIG_FILE).read_bytes()), spec))
    from flexlora_client.export import forms  # training libraries take seconds to import

    if options.merge:
        return forms.merged(folder, spec, options.model, options.dtype)
    if options.gguf:
        return forms.with_gguf(folder, spec, options.model)
    return forms.portable(folder, spec)
