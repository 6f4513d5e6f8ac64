"""The aggregation workers' processes: one worker's loop, and the workers that `serve` keeps running."""

import logging
import os
import signal
import subprocess
import sys
import threading
from types import FrameType, TracebackType

import torch
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.blobs import open_blobs
from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.store import Store
from flexlora_server.sweep import Sweeper
from flexlora_server.worker import Worker

log = logging.getLogger("flexlora.worker")
IDLE = 0.25  # seconds between looks for a round that waits
RETRY = 5.0  # seconds before a database or storage that failed is tried again
PATIENCE = 20.0  # seconds that a worker has to end
RESTART = 1.0  # seconds before a worker that died is started again


def run_worker(settings: Settings, *, attached: bool) -> None:
    """Aggregate rounds until SIGTERM or SIGINT; `attached` also ends, at once, when standard input closes.

    An attached worker dies with its parent, however that died: no orphan aggregates beside its successor.
    """
    torch.set_num_threads(1)  # modules run side by side, one LAPACK thread each
    store = Store(settings.url)
    store.check_head()
    stop = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    if attached:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    blobs = open_blobs(settings)
    sweeper = Sweeper(store, blobs)
    worker = Worker(store, blobs, settings, stop.is_set)
    while not stop.is_set():
        try:
            sweeper.step()  # first: what it deletes may be what a full disk needs
            busy = worker.step()
        except (SQLAlchemyError, OSError) as error:
            log.error("the database or the storage failed, trying again in %g s: %s", RETRY, error)
            stop.wait(RETRY)
            continue
        if not busy:
            stop.wait(IDLE)
    store.close()


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # not the buffered stream, whose lock would outlive the interpreter
        pass
    os._exit(0)


def check_device(settings: Settings) -> None:
    """Raises: StartupError where this machine lacks the device on which modules are to be factored."""
    if settings.aggregation_device != "cpu" and not torch.cuda.is_available():
        raise StartupError(
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
                while process.poll() is None and not self._stop.wait(IDLE):
                    pass
                process.terminate()  # it gives its round back after the modules at hand; killed, the attempt counts
                try:
                    process.wait(timeout=PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
            if not self._stop.is_set():
                log.error("a worker ended with code %s; starting another", process.returncode)
                self._stop.wait(RESTART)
