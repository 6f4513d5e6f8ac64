"""Builds the ASGI application: settings, database, blobs, waiting room and routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from flexlora_server.api import adapters, error_handlers, health, rounds, runs, tasks, uploads
from flexlora_server.api import clients as client_routes
from flexlora_server.api.auth import operator_key
from flexlora_server.api.services import Services
from flexlora_server.api.version_headers import VersionMiddleware
from flexlora_server.console import status_page
from flexlora_server.database import notifications
from flexlora_server.database.queries import clients
from flexlora_server.database.transactions import Store
from flexlora_server.long_polling.waiting_room import WaitingRoom
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
    threadpool_limits(1)  # of the libraries loaded by now (NumPy): uploads are inspected in parallel, one thread each
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store.check_head()
    blobs = open_blobs(settings)
    check_blobs(store, blobs)
    operator_secret, _ = operator_key(settings)
    services = Services(
        settings=settings,
        store=store,
        blobs=blobs,
        waiting_room=WaitingRoom(store, settings.presence_window),
        operator_sha256=clients.sha256(operator_secret),
    )
    app = FastAPI(
        title="FlexLoRA coordinator",
        version=version(),
        description=DESCRIPTION,
        lifespan=_lifespan,
    )
    app.state.services = services
    app.add_middleware(VersionMiddleware)
    error_handlers.install(app)
    for module in (runs, rounds, tasks, adapters, uploads, client_routes, health, status_page):
        app.include_router(module.routes)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the waiting room while the application serves; every committed change wakes it."""
    services: Services = app.state.services
    loop = asyncio.get_running_loop()

    def wake_waiting_room() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(services.waiting_room.wake)

    services.store.on_change = wake_waiting_room
    polling = asyncio.create_task(services.waiting_room.run())
    listening = []
    if services.store.notifies:
        listening.append(asyncio.create_task(notifications.listen(services.store.url, wake_waiting_room)))
    yield
    for task in listening:
        task.cancel()
        await asyncio.wait([task])
    services.waiting_room.close()
    await polling  # to its end: cancelling would leave its thread behind with a database connection
