"""The aggregation workers that `serve` keeps running, as processes of their own."""

import logging
import subprocess
import sys
import threading
from importlib.util import find_spec
from types import TracebackType

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings

log = logging.getLogger("flexlora.worker")
LOOK = 0.25  # seconds between looks whether a worker still runs
PATIENCE = 20.0  # seconds that a worker has to end
RESTART = 1.0  # seconds before a worker that died is started again


def check_installed() -> None:
    """See that the libraries of the extra `worker` are installed here, without loading them.

    Raises:
        StartupError: they are not.
    """
    missing = [library for library in ("safetensors", "torch") if find_spec(library) is None]
    if missing:
        raise StartupError(
            f"a worker needs {' and '.join(missing)}, which this installation lacks: pip install 'flexlora[worker]'"
        )


def check_device(settings: Settings) -> None:
    """Have a process of its own look for the device on which modules are to be factored: whoever serves does without PyTorch.

    Raises:
        StartupError: this machine lacks it.
    """
    if settings.aggregation_device == "cpu":
        return
    asked = [sys.executable, "-P", "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    if subprocess.run(asked, check=False).returncode != 0:
        raise no_device(settings)


def no_device(settings: Settings) -> StartupError:
    """What to do where there is none."""
    return StartupError(
        f"FLEXLORA_AGGREGATION_DEVICE is {settings.aggregation_device}, but PyTorch finds no CUDA device here: set it to "
        "cpu, or install a CUDA build of PyTorch"
    )


class Workers:
    """Keeps `count` attached workers running while the block runs."""

    def __init__(self, count: int) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._keep, daemon=True) for _ in range(count)]

    def __enter__(self) -> "Workers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _keep(self) -> None:
        command = [sys.executable, "-m", "flexlora_server.cli", "worker", "--attached"]
        while not self._stop.is_set():
            with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
                while process.poll() is None and not self._stop.wait(LOOK):
                    pass
                process.terminate()  # it gives its round back after the modules at hand; killed, the attempt counts
                try:
                    process.wait(timeout=PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
            if not self._stop.is_set():
                log.error("a worker ended with code %s; starting another", process.returncode)
                self._stop.wait(RESTART)
