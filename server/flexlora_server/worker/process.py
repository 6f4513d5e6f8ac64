"""The loop of a worker's process: sweep, aggregate what waits, until it is told to stop."""

import logging
import os
import signal
import sys
import threading
from types import FrameType

import torch
from sqlalchemy.exc import SQLAlchemyError
from threadpoolctl import threadpool_limits

from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker.garbage_collector import Sweeper
from flexlora_server.worker.supervisor import no_device
from flexlora_server.worker.worker import Worker

log = logging.getLogger("flexlora.worker")
IDLE = 0.25  # seconds between looks for a round that waits
RETRY = 5.0  # seconds before a database or storage that failed is tried again


def run_worker(settings: Settings, *, attached: bool) -> None:
    """Aggregate rounds until SIGTERM or SIGINT; `attached` also ends, at once, when standard input closes.

    An attached worker dies with its parent, however that died: no orphan aggregates beside its successor.

    Raises:
        StartupError: the device to factor on is missing, the database is not at head, or the storage cannot be used.
    """
    if settings.aggregation_device != "cpu" and not torch.cuda.is_available():
        raise no_device(settings)
    torch.set_num_threads(1)  # modules run side by side, one LAPACK thread each
    threadpool_limits(1)  # NumPy's, too, by which inputs are inspected again
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
