"""The parts a request may use, wired once by `app` and found again by `of`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import Request

from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.long_polling.waiting_room import Lobby
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore
from flexlora_shared.problems import Code

# Threads that look something up for hundreds of transfers. They take turns in the interpreter, and a small call waits for each of
# them whenever it comes back from the database: with 8 for parts and 40 for keys, it took three to six times as long.
FEW = 2
SOME = 8  # threads for agents that are not known yet: all of them at once after a restart
PATIENCE = 20.0  # seconds that who asks the database waits for those before it
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Coordinator:
    """One running coordinator."""

    settings: Settings
    store: Store
    blobs: BlobStore
    lobby: Lobby
    operator_sha256: str
    # Threads for what hundreds of transfers at once wait for, a database or a storage: those that serve everybody stay free.
    looking: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(FEW))
    greeting: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(SOME))
    first_using: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(FEW))
    announcing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    opening: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    committing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    serving: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    # Parts become durable, or are deleted, apart from where others are written: a storage that hangs holds up its own alone.
    # Never shut down: calls that are cancelled as the server stops may still come to it.
    keeping: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32, "keeping"))

    async def ask(self, threads: CapacityLimiter, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the database something in one of these threads.

        Raises:
            Refusal: UNAVAILABLE where those before it still wait for the database; or what `work` raises.
        """
        try:
            with fail_after(PATIENCE):  # for a thread: once it has one, the database has bounds of its own
                return await to_thread.run_sync(partial(work, *args, **kwargs), limiter=threads)
        except TimeoutError:
            raise Refusal(
                Code.UNAVAILABLE,
                "The database does not answer just now; nothing was changed. Try again.",
                headers={"Retry-After": "5"},
            ) from None


def of(request: Request) -> Coordinator:
    """The coordinator that serves this request."""
    coordinator = request.app.state.coordinator
    assert isinstance(coordinator, Coordinator)
    return coordinator
