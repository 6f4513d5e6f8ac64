"""A participant's side of a run: declare a rank, wait for a task.

Thousands wait most of the time. Whoever is known (`keyring`) to the lobby waits without the framework's way to a call and without
the database; a key is looked up there before a task is given out, and at once when keys have ended.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Body, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from flexlora_server.api.auth import ClientId, bearer, identify, recognise, require_client
from flexlora_server.api.openapi_examples import DECLARATION
from flexlora_server.api.services import Coordinator, of
from flexlora_server.api.strict_json import RunPath, StrictRoute, problems, router
from flexlora_server.database.queries import rounds, runs
from flexlora_server.lifecycle import find_task
from flexlora_server.lifecycle.serve_slice import check_ranks
from flexlora_server.long_polling.key_cache import Known
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.tasks import Task
from flexlora_shared.problems import Code

routes = router("participating")
EARLY = (
    0.25  # of the wait: an answer without a task comes at any time of this last part, so that bursts of polls dissolve
)
LONGEST = 60.0  # seconds of one wait


@routes.put(
    "/v1/runs/{run}/declaration",
    responses=problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_OVER, Code.RANK_NOT_ALLOWED),
)
def declare(
    request: Request, name: RunPath, told: Annotated[Declaration, Body(examples=[DECLARATION])], client: ClientId
) -> Declaration:
    """Declare, or change, the rank this participant affords. It holds from the next round on."""
    with of(request).store.transaction() as tx:
        run = runs.lock(tx, name)
        find_task.refuse_over(run)
        check_ranks(runs.spec_of(run), told.rank, told.rank_pattern)
        rounds.declare(tx, run, client, told)
    return told


async def poll(request: Request, name: str, secret: str, client: str, wait: float) -> Response:
    """The participant's task as soon as there is one; 204 where none came in time."""
    coordinator, clock = of(request), asyncio.get_running_loop().time
    until = clock() + wait * (1 - EARLY * random.random())
    found, version = await run_in_threadpool(_find, coordinator, name, secret) if wait == 0 else (None, -1)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        while found is None and await coordinator.lobby.work(name, client, until - clock(), gone, version):
            found, version = await run_in_threadpool(_find, coordinator, name, secret)
    finally:
        gone.cancel()
    if found is None:
        return Response(status_code=204, headers={"Retry-After": "1"})
    return Response(found.model_dump_json(), media_type="application/json")


async def _disconnected(request: Request) -> None:
    """Return when the caller has closed its connection: a dead agent is not present."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _find(coordinator: Coordinator, name: str, secret: str) -> tuple[Task | None, int]:
    """Nothing is given out but to a key that is good now."""
    client = require_client(identify(coordinator, secret))
    return find_task.find(coordinator.store, coordinator.blobs, name, client)


class _Waiting(StrictRoute):
    """A call that whoever is known makes without the framework; anybody else, and anything unusual, takes the usual way."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The short way where it will do, else FastAPI's handler."""
        usual = super().get_route_handler()

        async def handle(request: Request) -> Response:
            name, secret, wait = request.path_params["run"], bearer(request), _plain_wait(request)
            if secret is not None and wait is not None:
                lobby = of(request).lobby
                client = lobby.keyring.find(secret)
                if client is not None and lobby.admitted(name, client):
                    return await poll(request, name, secret, client, wait)
            return await usual(request)

        return handle


def _plain_wait(request: Request) -> float | None:
    """The seconds of `?wait=SECONDS` in digits and nothing else; None for anything that needs a closer look."""
    name, _, value = request.scope["query_string"].decode("latin-1").partition("=")
    plain = name == "wait" and len(value) <= 3 and value.isascii() and value.isdigit()
    return float(value) if plain and int(value) <= LONGEST else None


async def _known(request: Request) -> str:
    """The client that asks, by its secret as the database has it; remembered for its next calls."""
    coordinator, secret = of(request), bearer(request)
    state = coordinator.lobby.keyring.state
    who = await recognise(request, coordinator.greeting)
    client = require_client(who)
    assert secret is not None, "it was identified by it"
    assert who.key_id is not None, "a client has a key"
    coordinator.lobby.keyring.add(secret, Known(who.key_id, client), state)
    return client


async def next_task(
    request: Request,
    name: RunPath,
    client: Annotated[str, Depends(_known)],
    wait: Annotated[
        float, Query(ge=0, le=LONGEST, description="seconds to wait for a task; 204 may come a quarter earlier")
    ] = 0.0,
) -> Response:
    """Wait for work: this also tells the coordinator that the participant is present."""
    coordinator, secret = of(request), bearer(request)
    assert secret is not None, "it was identified by it"
    if wait == 0 or not coordinator.lobby.admitted(name, client):
        await coordinator.ask(coordinator.greeting, find_task.check, coordinator.store, name, client)
        coordinator.lobby.admit(name, client)
    return await poll(request, name, secret, client, wait)


routes.add_api_route(
    "/v1/runs/{run}/task",
    next_task,
    methods=["GET"],
    response_model=Task,
    responses={
        204: {"description": "no task yet; ask again after `Retry-After` seconds"},
        **problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_OVER, Code.NOT_DECLARED),
    },
    route_class_override=_Waiting,
)
