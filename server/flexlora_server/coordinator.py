"""The parts a request may use, wired once by `app` and found again by `of`."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from fastapi import Request

from flexlora_server.blobs import BlobStore
from flexlora_server.lobby import Lobby
from flexlora_server.settings import Settings
from flexlora_server.store import Store

# Threads that look something up beside hundreds of transfers. They take turns in the interpreter, and a small call waits for
# each of them whenever it comes back from the database: with 8 and 40 of these, it took three to six times as long.
FEW = 2


@dataclass(frozen=True)
class Coordinator:
    """One running coordinator."""

    settings: Settings
    store: Store
    blobs: BlobStore
    lobby: Lobby
    operator_sha256: str
    # Threads for what hundreds of transfers at once wait for, a database or a storage: those that serve everybody stay free.
    identifying: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(FEW))
    announcing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    receiving: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(FEW))
    opening: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    committing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    serving: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    # Parts become durable apart from where others are written: a storage that hangs holds up its own calls alone.
    # Never shut down: calls that are cancelled as the server stops may still come to it.
    keeping: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32, "keeping"))


def of(request: Request) -> Coordinator:
    """The coordinator that serves this request."""
    coordinator = request.app.state.coordinator
    assert isinstance(coordinator, Coordinator)
    return coordinator
