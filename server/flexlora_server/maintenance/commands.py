"""The commands verify, backup, restore and replay of `flexlora-server`."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.database.transactions import Store
from flexlora_server.errors import AggregationError, StartupError
from flexlora_server.maintenance import backup as backup_module
from flexlora_server.maintenance import verify_blobs
from flexlora_server.settings import Settings, load_settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker.supervisor import check_device, check_installed
from flexlora_shared.messages.records import RoundRecord

app = typer.Typer()
FOLDER = typer.Argument(help="The folder of the backup.")
RECORD = typer.Argument(help="The record: `flexlora-client export RUN --record FILE` writes it.")
BLOBS = typer.Argument(help="The data folder, its folder of blobs, or one of files named by their SHA-256.")


def _open_store() -> tuple[Settings, Store]:
    settings = load_settings()
    store = Store(settings.url)
    store.check_head()
    return settings, store


@contextmanager
def _as_startup_error(what: str) -> Iterator[None]:
    """Turn errors of the storage or the database into one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        raise StartupError(f"{what}: {error}") from error


@app.command()
def verify() -> None:
    """Hash every blob that the database names; exit code 1 and a list where one is missing or damaged. Safe while it serves."""
    settings, store = _open_store()
    checked = wrong = 0
    with _as_startup_error("the blobs could not all be verified"):
        for sha256, fault in verify_blobs.check_each_blob(store, settings):
            checked += 1
            if fault is not None:
                wrong += 1
                typer.echo(f"{sha256}: {fault}")
    store.close()
    typer.echo(f"{checked} blobs checked, {wrong} missing or damaged.")
    if wrong:
        raise typer.Exit(1)


@app.command()
def backup(folder: Path = FOLDER) -> None:
    """Copy the database and every blob it names into a new folder, also while the coordinator runs."""
    settings, store = _open_store()
    with _as_startup_error(f"the backup is not whole, delete {folder}"), verify_blobs.uncached_blobs(settings) as blobs:
        count = backup_module.backup(store, blobs, folder)
    store.close()
    typer.echo(f"The database and {count} blobs are in {folder}. The operator's key is not: keep it elsewhere.")


@app.command()
def restore(folder: Path = FOLDER) -> None:
    """Put a backup into an empty place, with the coordinator stopped."""
    settings = load_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(settings.url)
    with _as_startup_error("the backup was not restored"):
        count = backup_module.restore(store, open_blobs(settings), folder)
    store.close()
    typer.echo(f"The database and {count} blobs are restored; `flexlora-server serve` goes on from there.")


@app.command()
def replay(
    record: Path = RECORD,
    blobs: Path = BLOBS,
) -> None:
    """Aggregate a published round again, without a database; exit code 1 and the reasons where the bytes are others."""
    settings, recorded = load_settings(), _read_record(record)
    check_installed()
    check_device(settings)
    if not blobs.is_dir():
        raise StartupError(f"{blobs} is no folder; name the one that holds the files of the round")
    from flexlora_server.worker.replay import replay as aggregate_again  # brings PyTorch, which others do without

    what = f"round {recorded.round} of run {recorded.spec.name}"
    try:
        made = aggregate_again(recorded, blobs, settings.aggregation_threads, settings.aggregation_device)
    except (AggregationError, OSError) as error:
        raise StartupError(f"{what} cannot be aggregated again: {error}") from error
    except Exception as error:  # a record that was changed may contradict its files in any way
        raise StartupError(
            f"{what} cannot be aggregated again: the record does not fit the files, or was changed "
            f"({type(error).__name__}: {error})"
        ) from error
    for fault in made.faults:
        typer.echo(f"{fault[0].upper()}{fault[1:]}.")
    if made.faults:
        typer.echo(f"So {what} is not reproduced.")
        raise typer.Exit(1)
    typer.echo(f"The same bytes: {what} is reproduced, SHA-256 {made.sha256}.")


def _read_record(file: Path) -> RoundRecord:
    try:
        return RoundRecord.model_validate_json(file.read_bytes())
    except OSError as error:
        raise StartupError(f"cannot read {file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StartupError(
            f"{file} is no record of this version ({where}: {first['msg']}); "
            "`flexlora-client export RUN --record FILE` writes one, and the release that wrote it reads it"
        ) from None
