"""Starts and restarts the worker processes of `serve`, and checks that what they need is installed."""

import logging
import subprocess
import sys
import threading
from importlib.util import find_spec
from types import TracebackType

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings

log = logging.getLogger("flexlora.worker")
POLL_INTERVAL_S = 0.25  # between checks whether a worker still runs
STOP_TIMEOUT_S = 20.0  # that a worker has to exit before it is killed
RESTART_DELAY_S = 1.0  # before a worker that died is started again


def check_installed() -> None:
    """Check that the libraries of the extra `worker` are installed, without importing them.

    Raises:
        StartupError: they are not.
    """
    missing = [library for library in ("safetensors", "torch") if find_spec(library) is None]
    if missing:
        raise StartupError(
            f"a worker needs {' and '.join(missing)}, which this installation lacks: pip install 'flexlora[worker]'"
        )


def check_device(settings: Settings) -> None:
    """Check in a separate process that the device to compute on exists: the serving process never imports PyTorch.

    Raises:
        StartupError: this machine lacks it.
    """
    if settings.aggregation_device == "cpu":
        return
    command = [sys.executable, "-P", "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    if subprocess.run(command, check=False).returncode != 0:
        raise missing_device_error(settings)


def missing_device_error(settings: Settings) -> StartupError:
    """The error for a machine without a CUDA device."""
    return StartupError(
        f"FLEXLORA_AGGREGATION_DEVICE is {settings.aggregation_device}, but PyTorch finds no CUDA device here: set it to "
        "cpu, or install a CUDA build of PyTorch"
    )


class WorkerSupervisor:
    """Keeps `count` attached workers running while the block runs."""

    def __init__(self, count: int) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._supervise, daemon=True) for _ in range(count)]

    def __enter__(self) -> "WorkerSupervisor":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _supervise(self) -> None:
        command = [sys.executable, "-m", "flexlora_server.cli", "worker", "--attached"]
        while not self._stop.is_set():
            with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
                while process.poll() is None and not self._stop.wait(POLL_INTERVAL_S):
                    pass
                process.terminate()  # it gives its round back after the current modules; if it is killed, the attempt counts
                try:
                    process.wait(timeout=STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            if not self._stop.is_set():
                log.error("a worker ended with code %s; starting another", process.returncode)
                self._stop.wait(RESTART_DELAY_S)
