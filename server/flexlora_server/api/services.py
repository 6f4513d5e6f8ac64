"""The services that request handlers use: built once by `app`, and returned by `get_services`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import Request

from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.long_polling.waiting_room import WaitingRoom
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore
from flexlora_shared.problems import Code

# Threads that query the database for hundreds of transfers. They share the interpreter's lock, and a small call waits for each of
# them whenever it returns from the database: with 8 threads for parts and 40 for keys, it took three to six times as long.
LOOKUP_THREADS = 2
POLL_LOOKUP_THREADS = 8  # for keys of agents that poll: all of them at once after a restart
MAX_THREAD_WAIT_S = 20.0  # for a free thread
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What one running coordinator shares between its requests."""

    settings: Settings
    store: Store
    blobs: BlobStore
    waiting_room: WaitingRoom
    operator_sha256: str
    # Threads for calls that block on the database or the storage in hundreds of transfers at once: the default ones stay free.
    lookup_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOOKUP_THREADS))
    poll_lookup_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(POLL_LOOKUP_THREADS))
    first_use_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOOKUP_THREADS))
    announce_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    open_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    commit_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    slice_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    # For syncing and deleting parts, apart from the threads that write: a storage that hangs blocks these alone. Never shut down:
    # calls that are cancelled as the server stops may still submit to it.
    storage_executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32, "storage"))

    async def run_blocking(
        self, threads: CapacityLimiter, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work`, which queries the database, in one of these threads.

        Raises:
            Refusal: UNAVAILABLE where no thread became free in `MAX_THREAD_WAIT_S`; or what `work` raises.
        """
        try:
            with fail_after(MAX_THREAD_WAIT_S):  # for a thread only: the database has timeouts of its own
                return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=threads)
        except TimeoutError:
            raise Refusal(
                Code.UNAVAILABLE,
                "The database does not answer just now; nothing was changed. Try again.",
                headers={"Retry-After": "5"},
            ) from None


def get_services(request: Request) -> Services:
    """The services of the application that serves this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services
