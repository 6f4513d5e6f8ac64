"""A participant's side of a run: declare a rank, wait for a task."""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Annotated, Any, cast
from urllib.parse import urlencode

from fastapi import Body, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from flexlora_server.aggregation.strategy import strategy
from flexlora_server.auth import ClientId
from flexlora_server.coordinator import Coordinator, of
from flexlora_server.errors import Refusal
from flexlora_server.records import rounds, runs, uploads
from flexlora_server.rounds import OVER
from flexlora_server.routes.examples import DECLARATION
from flexlora_server.routes.strict import RunPath, problems, router
from flexlora_server.serving import check_ranks, slice_blob
from flexlora_server.tables import Assignment, Round, Run
from flexlora_server.times import rfc3339
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import AdapterRef, Task
from flexlora_shared.problems import Code

routes = router("participating")


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
        refuse_over(run)
        check_ranks(runs.spec_of(run), told.rank, told.rank_pattern)
        rounds.declare(tx, run, client, told)
    return told


def refuse_over(run: Run) -> None:
    """Tell a participant that it can stop.

    Raises:
        Refusal: RUN_OVER, with the run's final state in the context.
    """
    if run.state in OVER:
        raise Refusal(
            Code.RUN_OVER, f"Run {run.name!r} is {run.state}; its last adapter can be exported.", state=run.state
        )


@routes.get(
    "/v1/runs/{run}/task",
    responses={
        204: {"description": "no task yet; ask again after `Retry-After` seconds"},
        **problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_OVER, Code.NOT_DECLARED),
    },
    response_model=Task,
)
async def next_task(
    request: Request,
    name: RunPath,
    client: ClientId,
    wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait for a task")] = 0.0,
) -> Task | Response:
    """Wait for work: this also tells the coordinator that the participant is present."""
    coordinator = of(request)
    if wait == 0 or not coordinator.lobby.admitted(name, client):
        await run_in_threadpool(_check, coordinator, name, client)
        coordinator.lobby.admit(name, client)
    clock = asyncio.get_running_loop().time
    until = clock() + wait
    task, version = await run_in_threadpool(_task, coordinator, name, client) if wait == 0 else (None, -1)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        while task is None and await _unless(gone, coordinator.lobby.work(name, client, until - clock(), version)):
            task, version = await run_in_threadpool(_task, coordinator, name, client)
    finally:
        gone.cancel()
    return task or Response(status_code=204, headers={"Retry-After": "1"})


async def _disconnected(request: Request) -> None:
    """Return when the caller has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future[None], waiting: Coroutine[Any, Any, bool]) -> bool:
    """What `waiting` says; False, and no longer waiting, once the caller is gone: a dead agent is not present."""
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait([gone, cast("asyncio.Future[Any]", task)], return_when=asyncio.FIRST_COMPLETED)
        return task.done() and task.result()
    finally:
        task.cancel()


def _check(coordinator: Coordinator, name: str, client: str) -> None:
    with coordinator.store.reading() as tx:
        refuse_over(runs.get(tx, name))
        if rounds.declaration_of(tx, name, client) is None:
            raise Refusal(Code.NOT_DECLARED, f"Declare a rank for run {name!r} first: PUT /v1/runs/{name}/declaration.")


def _task(coordinator: Coordinator, name: str, client: str) -> tuple[Task | None, int]:
    """The client's task, if it has one, and the run's version it was looked up in."""
    with coordinator.store.reading() as tx:
        run = runs.get(tx, name)
        refuse_over(run)
        spec, round_ = runs.spec_of(run), rounds.current(tx, name)
        if round_ is None or round_.deadline is None or round_.state != "COLLECTING" or round_.deadline <= tx.now:
            return None, run.version
        place = rounds.assignment(tx, round_, client)
        if place is None or uploads.accepted(tx, round_, client) is not None:
            return None, run.version
    blob = slice_blob(coordinator.store, coordinator.blobs, name, round_.number - 1, place.rank, place.rank_pattern)
    return _message(spec, round_, place, blob.sha256, blob.size), run.version


def _message(spec: RunSpec, round_: Round, place: Assignment, sha256: str, size: int) -> Task:
    assert round_.deadline is not None, "a collecting round has a deadline"
    path = f"/v1/runs/{spec.name}/rounds/{round_.number - 1}"
    query = _query(place.rank, place.rank_pattern)
    return Task(
        run=spec.name,
        round=round_.number,
        attempt=round_.attempt,
        rank=place.rank,
        rank_pattern=dict(place.rank_pattern),
        deadline=rfc3339(round_.deadline),
        adapter=AdapterRef(
            href=f"{path}/adapter?{query}", config_href=f"{path}/adapter-config?{query}", sha256=sha256, size=size
        ),
        trainable=strategy(spec.strategy).agents_train,
        spec=spec,
    )


def _query(rank: int, pattern: Mapping[str, int]) -> str:
    asked = {"rank": str(rank)} | ({"pattern": json.dumps(pattern)} if pattern else {})
    return urlencode(asked)
