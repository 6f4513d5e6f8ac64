"""The command line `flexlora-server`: migrate, serve, worker; verify, backup, restore, replay are in `maintenance.commands`.

Exit codes: 0 ended as asked, 1 cannot start (the sentence on stderr says what to do), blobs are damaged or a round is not
reproduced, 2 wrong usage.
"""

import gc
import logging
import socket
import sys

import typer
import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import ArgumentError, OperationalError

from flexlora_server.api.auth import operator_key
from flexlora_server.app import create_app
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance import commands
from flexlora_server.settings import Settings, load_settings
from flexlora_server.worker.supervisor import WorkerSupervisor, check_device, check_installed
from flexlora_shared.versions import version_line

app = typer.Typer(
    help="The FlexLoRA coordinator. Settings are environment variables FLEXLORA_…, listed in docs/operating.md.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(version_line("flexlora-server"))
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=_print_version,
        help="Show the versions of program and protocol, and exit.",
    ),
) -> None:
    """Options before the command."""


@app.command()
def migrate() -> None:
    """Create the database, or bring it to this version's schema."""
    settings = load_settings()
    _make_data_dir(settings)
    Store(settings.url).migrate()
    typer.echo(f"The database {settings.url.render_as_string(hide_password=True)} is at the newest schema.")


@app.command()
def serve() -> None:
    """Serve the protocol, and start the aggregation workers that the settings ask for."""
    settings = load_settings()
    if settings.workers:
        _check_workers(settings)
    _make_data_dir(settings)
    store = Store(settings.url)
    application = create_app(settings, store)
    _, generated = operator_key(settings)
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    print(f"Coordinator on http://{host}:{port}", flush=True)
    if generated:
        print(f"The operator's key is in {generated.resolve()}", flush=True)
    gc.freeze()  # no full collections of what lives as long as the process, or of thousands of waiting requests
    gc.set_threshold(20_000, 20, 100)
    config = uvicorn.Config(application, log_config=None, access_log=False, timeout_graceful_shutdown=3)
    with WorkerSupervisor(settings.workers):
        uvicorn.Server(config).run(sockets=[listener])
    store.close()


@app.command()
def worker(
    attached: bool = typer.Option(
        False, "--attached", help="End when standard input closes: `serve` starts its workers so."
    ),
) -> None:
    """Aggregate rounds until stopped; any number of workers may run."""
    settings = load_settings()
    check_installed()
    _make_data_dir(settings)
    from flexlora_server.worker.process import run_worker  # brings PyTorch, which the other commands do without

    run_worker(settings, attached=attached)


app.add_typer(commands.app)


def _check_workers(settings: Settings) -> None:
    """Refuse to start where workers cannot run, instead of failing when the first round waits.

    Raises:
        StartupError: PyTorch is not installed, or the device cannot be used.
    """
    try:
        check_installed()
    except StartupError as error:
        raise StartupError(
            f"FLEXLORA_WORKERS is {settings.workers}, but {error}; or set FLEXLORA_WORKERS=0 to serve alone, and run "
            "`flexlora-server worker` where it is installed"
        ) from None
    check_device(settings)


def _make_data_dir(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StartupError(f"the data folder {settings.data_dir} cannot be used: {error.strerror}") from error


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; set FLEXLORA_HOST and FLEXLORA_PORT"
        ) from error


def _settings_error(error: ValidationError) -> str:
    faults = (f"FLEXLORA_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}" for fault in error.errors())
    return "; ".join(faults)


def main() -> None:
    """The console script."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        app()
    except StartupError as error:
        sys.exit(f"flexlora-server: {error}")
    except ValidationError as error:
        sys.exit(f"flexlora-server: {_settings_error(error)}")
    except (ArgumentError, SettingsError) as error:
        sys.exit(f"flexlora-server: {error}")
    except OperationalError as error:
        sys.exit(f"flexlora-server: the database cannot be reached: {error.orig}")


if __name__ == "__main__":
    main()
