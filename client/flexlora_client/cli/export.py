"""The command `export`: an adapter, published or the participant's own, as a PEFT folder, atomically; or a round's record."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from flexlora_client.agent.download import download
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.results import SPEC_FILE, Results
from flexlora_client.agent.slice_cache import CachedSlice, SliceCache, SliceRequest, request_for_round
from flexlora_client.cli.model_card import model_card
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
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, write_whole
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.messages.runs import RunSpec


@dataclass(frozen=True)
class _Exported:
    """What is exported, beside its files."""

    spec: RunSpec
    round: int
    rank: int
    metrics: dict[str, float]
    sha256: str
    own: bool = False


@with_connection
def export(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; it must not hold anything yet.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="LoRA rank of the published adapter.")] = None,
    source: Annotated[
        Literal["global", "own", "best"],
        typer.Option(
            "--from",
            help="A published adapter, the best of your own training, or the better of that and the one served last.",
        ),
    ] = "global",
    number: Annotated[int | None, typer.Option("--round", min=0, help="Round. [the last published]")] = None,
    rank_pattern_: RankPatternOption = None,
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
    """Save an adapter as an ordinary PEFT folder."""
    if record is not None:
        save_record(connection, run, number, source, record, as_json=as_json and output is None)
        if output is None:
            return
    if output is None:
        raise typer.BadParameter("what shall be saved? give --output for an adapter, --record for a round's record")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{output} exists and is not an empty folder; name another one")
    if source != "global":
        if not (rank is None and number is None and not rank_pattern_):
            raise typer.BadParameter(f"--from {source} takes the rank and the round that were trained; leave them out")
        found = _export(output, lambda folder: _kept(Results(connection.folder / "runs" / run), source, folder))
    elif rank is None:
        raise typer.BadParameter("which rank? give --rank, or --from own for the adapter of your own training")
    else:
        with as_anyone(connection) as api:
            detail = api.run(run)
            round_number = detail.status.rounds_published if number is None else number
            request = request_for_round(detail.spec, round_number, rank, parse_rank_pattern(rank_pattern_))
            found = _export(output, lambda folder: _published(api, request, round_number, folder))
    if as_json:
        told = {"run": run, "round": found.round, "rank": found.rank, "own": found.own, "sha256": found.sha256}
        print(json.dumps({**told, "folder": str(output)}))
    else:
        own = ", your own," if found.own else ""
        print(f"round {found.round} of {run} at rank {found.rank}{own} is in {output}")


def _published(api: Api, request: SliceRequest, number: int, folder: Path) -> _Exported:
    """Download a published adapter."""
    with Reporter(request.spec.name).bytes_bar("downloading") as on_progress:
        fetched: CachedSlice = download(api, SliceCache(folder / "slices"), request, on_progress)
    for name in (CONFIG_FILE, ADAPTER_FILE):
        (fetched.folder / name).replace(folder / name)
    shutil.rmtree(folder / "slices")
    told = [e for e in api.round(request.spec.name, number).summary.evaluations if e.rank == request.rank]
    metrics = {f"{e.metric}{' (evaluators)' if e.role == 'evaluator' else ''}": e.value for e in told}
    return _Exported(request.spec, number, request.rank, metrics, fetched.sha256)


def _kept(results: Results, source: Literal["own", "best"], folder: Path) -> _Exported:
    """Copy an adapter of the work folder."""
    spec = results.spec()
    kept, path = results.choose(source)
    for name in (CONFIG_FILE, ADAPTER_FILE):
        shutil.copyfile(path / name, folder / name)
    return _Exported(spec, kept.round, kept.rank, dict(kept.metrics), kept.sha256, kept.own)


def _export(output: Path, fill: Callable[[Path], _Exported]) -> _Exported:
    """Fill a temporary folder beside `output`, then rename it: a cut or a crash leaves no half folder under its name."""
    make_folder(output.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder = make_folder(temporary / output.name)  # mkdtemp's own is closed to others
        found = fill(folder)
        card = model_card(found.spec, found.round, found.rank, found.metrics, own=found.own)
        write_whole(folder / "README.md", card.encode())
        write_whole(folder / SPEC_FILE, found.spec.model_dump_json(indent=2).encode())
        folder.replace(output)
        return found
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
