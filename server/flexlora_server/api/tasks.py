"""A participant's side of a run: declare a rank, wait for a task by long polling.

Thousands of agents wait most of the time. A poll with a cached key waits without FastAPI's request handling and without the
database. Before a task is given out, its key is looked up in the database again; a revoked key ends its wait at once.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import Body, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from flexlora_server.api.auth import ClientId, authenticate, bearer, confirm_client, require_client
from flexlora_server.api.openapi_examples import DECLARATION, FAILURE
from flexlora_server.api.services import Services, get_services
from flexlora_server.api.strict_json import Instance, RoundPath, RunPath, StrictRoute, problems, router
from flexlora_server.database.queries import rounds, runs
from flexlora_server.lifecycle import find_task, transitions
from flexlora_server.lifecycle.validation import check_declaration
from flexlora_server.long_polling.key_cache import CachedKey
from flexlora_shared.messages.clients import INSTANCE_HEADER, Declaration, Declared
from flexlora_shared.messages.tasks import Failure, Task
from flexlora_shared.problems import Code

routes = router("participating")
# of the wait: an answer without a task comes at a random time in this last part, so that bursts of polls spread out
EARLY_ANSWER_SHARE = 0.25
MAX_WAIT_S = 60.0


@routes.put(
    "/v1/runs/{run}/declaration",
    responses=problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_OVER, Code.RANK_NOT_ALLOWED, Code.MODEL_MISMATCH),
)
def declare(
    request: Request,
    name: RunPath,
    declaration: Annotated[Declaration, Body(examples=[DECLARATION])],
    client: ClientId,
    instance: Instance = None,
) -> Declared:
    """Declare, or change, the rank this participant affords. It holds from the next round on."""
    with get_services(request).store.transaction() as tx:
        run = runs.lock(tx, name)
        find_task.require_not_over(run)
        check_declaration(runs.spec_of(run), declaration)
        replaced = rounds.declare(tx, run, client, declaration, instance)
    return Declared(**dict(declaration), replaced=replaced)


async def wait_for_task(request: Request, name: str, secret: str, client: str, wait: float) -> Response:
    """The participant's task as soon as there is one; 204 where none came within `wait` seconds."""
    services, clock = get_services(request), asyncio.get_running_loop().time
    until = clock() + wait * (1 - EARLY_ANSWER_SHARE * random.random())
    find = partial(_find_task, services, name, secret, request.headers.get(INSTANCE_HEADER))
    task, version = await run_in_threadpool(find) if wait == 0 else (None, -1)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        while task is None and await services.waiting_room.wait_for_work(name, client, until - clock(), gone, version):
            task, version = await run_in_threadpool(find)
    finally:
        gone.cancel()
    if task is None:
        return Response(status_code=204, headers={"Retry-After": "1"})
    return Response(task.model_dump_json(), media_type="application/json")


async def _disconnected(request: Request) -> None:
    """Return when the caller has closed its connection: a dead agent is not present."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _find_task(services: Services, name: str, secret: str, instance: str | None) -> tuple[Task | None, int]:
    """As `find_task`, for a key that the database confirms right before.

    One thread and no bound on the wait for it: where a round begins, thousands come here at once and all of them get their task.
    """
    return find_task.find_task(services.store, services.blobs, name, confirm_client(services, secret), instance)


class _LongPollRoute(StrictRoute):
    """Answers polls with a cached key without FastAPI's request handling; passes every other call on to it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The short way for a cached key and a plain query, else FastAPI's handler."""
        fastapi_handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            name, secret, wait = request.path_params["run"], bearer(request), _plain_wait(request)
            if secret is not None and wait is not None:
                waiting_room = get_services(request).waiting_room
                client, instance = waiting_room.key_cache.find(secret), request.headers.get(INSTANCE_HEADER)
                if client is not None and waiting_room.is_declared(name, client, instance):
                    return await wait_for_task(request, name, secret, client, wait)
            return await fastapi_handler(request)

        return handle


def _plain_wait(request: Request) -> float | None:
    """The seconds of a query that is `wait=DIGITS` and nothing else; None for any other, which FastAPI validates."""
    name, _, value = request.scope["query_string"].decode("latin-1").partition("=")
    plain = name == "wait" and len(value) <= 3 and value.isascii() and value.isdigit()
    return float(value) if plain and int(value) <= MAX_WAIT_S else None


async def _client_into_cache(request: Request) -> str:
    """Authenticate a client, and cache its key for its next polls; its id."""
    services, secret = get_services(request), bearer(request)
    state = services.waiting_room.key_cache.state
    who = await authenticate(request, secret, services.poll_lookup_threads)
    client = require_client(who)
    assert secret is not None, "it was authenticated by it"
    assert who.key_id is not None, "a client has a key"
    services.waiting_room.key_cache.add(secret, CachedKey(who.key_id, client), state)
    return client


async def next_task(
    request: Request,
    name: RunPath,
    client: Annotated[str, Depends(_client_into_cache)],
    wait: Annotated[
        float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for a task; 204 may come a quarter earlier")
    ] = 0.0,
    instance: Instance = None,
) -> Response:
    """Wait for work: this also tells the coordinator that the participant is present."""
    services, secret = get_services(request), bearer(request)
    assert secret is not None, "it was authenticated by it"
    if wait == 0 or not services.waiting_room.is_declared(name, client, instance):
        check = partial(find_task.require_declared, services.store, name, client, instance)
        declared_by = await services.run_blocking(services.poll_lookup_threads, check)
        services.waiting_room.remember_declared(name, client, declared_by)
    return await wait_for_task(request, name, secret, client, wait)


@routes.put(
    "/v1/runs/{run}/rounds/{number}/failure",
    status_code=204,
    response_class=Response,
    responses=problems(
        Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING,
        Code.SUPERSEDED,
    ),
)  # fmt: skip
def report_failure(
    request: Request,
    name: RunPath,
    number: RoundPath,
    failure: Annotated[Failure, Body(examples=[FAILURE])],
    client: ClientId,
    instance: Instance = None,
) -> None:
    """Report that the task cannot be finished: the round goes on without this participant until it declares anew."""
    services = get_services(request)
    with services.store.transaction() as tx:
        run = runs.lock(tx, name)
        find_task.require_newest_agent(tx, name, client, instance)
        round_, window = rounds.latest(tx, name, number), services.settings.presence_window
        transitions.record_failed_participant(tx, run, round_, client, failure, window)


routes.add_api_route(
    "/v1/runs/{run}/task",
    next_task,
    methods=["GET"],
    response_model=Task,
    responses={
        204: {"description": "no task yet; ask again after `Retry-After` seconds"},
        **problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_OVER, Code.NOT_DECLARED, Code.SUPERSEDED),
    },
    route_class_override=_LongPollRoute,
)
