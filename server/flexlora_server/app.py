"""Wires a coordinator: settings, database, blobs, lobby and routes into one ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from flexlora_server.api import adapters, error_handlers, health, rounds, runs, tasks, uploads
from flexlora_server.api import clients as client_routes
from flexlora_server.api.auth import operator_key
from flexlora_server.api.services import Coordinator
from flexlora_server.api.version_headers import Versions
from flexlora_server.console import status_page
from flexlora_server.database import notifications
from flexlora_server.database.queries import clients
from flexlora_server.database.transactions import Store
from flexlora_server.long_polling.waiting_room import Lobby
from flexlora_server.maintenance.verify_blobs import check_blobs
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from flexlora_shared.versions import version

DESCRIPTION = "Federated LoRA fine-tuning, every participant at its own rank (FlexLoRA, arXiv 2402.11505)."


def create_app(settings: Settings, store: Store) -> FastAPI:
    """The coordinator's application.

    Raises:
        StartupError: the database is not at head, a blob is missing, or the operator's key cannot be used.
    """
    threadpool_limits(1)  # of what is loaded by now, NumPy: inspections run side by side, one thread each
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store.check_head()
    blobs = open_blobs(settings)
    check_blobs(store, blobs)
    key, _ = operator_key(settings)
    coordinator = Coordinator(
        settings=settings,
        store=store,
        blobs=blobs,
        lobby=Lobby(store, settings.presence_window),
        operator_sha256=clients.sha256(key),
    )
    app = FastAPI(
        title="FlexLoRA coordinator",
        version=version(),
        description=DESCRIPTION,
        lifespan=_lifespan,
    )
    app.state.coordinator = coordinator
    app.add_middleware(Versions)
    error_handlers.install(app)
    for module in (runs, rounds, tasks, adapters, uploads, client_routes, health, status_page):
        app.include_router(module.routes)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the lobby while the application serves; whatever commits a change pokes it."""
    coordinator: Coordinator = app.state.coordinator
    loop = asyncio.get_running_loop()

    def poke() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(coordinator.lobby.poke)

    coordinator.store.on_change = poke
    keeper = asyncio.create_task(coordinator.lobby.keep())
    hearing = (
        asyncio.create_task(notifications.hear(coordinator.store.url, poke)) if coordinator.store.notifies else None
    )
    yield
    if hearing is not None:
        hearing.cancel()
        await asyncio.wait([hearing])
    coordinator.lobby.close()
    await keeper  # to its end: cancelling would leave its thread behind with a database connection
