"""The main loop of a worker process: collect garbage, aggregate a waiting round, repeat until a signal stops it."""

import logging
import os
import signal
import sys
import threading
from types import FrameType

import torch
from threadpoolctl import threadpool_limits

from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker.garbage_collector import GarbageCollector
from flexlora_server.worker.supervisor import missing_device_error
from flexlora_server.worker.worker import ENVIRONMENT_ERRORS, Worker

log = logging.getLogger("flexlora.worker")
POLL_INTERVAL_S = 0.25  # between queries for a round that waits
RETRY_DELAY_S = 5.0  # after a failure of the database or the storage


def run_worker(settings: Settings, *, attached: bool) -> None:
    """Aggregate rounds until SIGTERM or SIGINT; `attached` also ends, at once, when standard input closes.

    An attached worker exits when its parent dies for whatever reason, so that no orphan works beside its successor.

    Raises:
        StartupError: the device to compute on is missing, the database is not at head, or the storage cannot be used.
    """
    if settings.aggregation_device != "cpu" and not torch.cuda.is_available():
        raise missing_device_error(settings)
    torch.set_num_threads(1)  # several modules run at a time, one LAPACK thread each
    threadpool_limits(1)  # NumPy's, too, by which inputs are inspected again
    store = Store(settings.url)
    store.check_head()
    stop = threading.Event()

    def request_stop(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    if attached:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    blobs = open_blobs(settings)
    collector = GarbageCollector(store, blobs)
    worker = Worker(store, blobs, settings, stop.is_set)
    while not stop.is_set():
        try:
            collector.step()  # first: what it deletes may be what a full disk needs
            busy = worker.step()
        except ENVIRONMENT_ERRORS as error:
            log.error("the database, the storage or a plug-in failed, trying again in %g s: %s", RETRY_DELAY_S, error)
            stop.wait(RETRY_DELAY_S)
            continue
        if not busy:
            stop.wait(POLL_INTERVAL_S)
    store.close()


def _exit_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # not the buffered stream, whose lock would outlive the interpreter
        pass
    os._exit(0)
