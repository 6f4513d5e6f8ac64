"""Watching rounds: their list, one in detail, and the stream of state changes."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Body, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from flexlora_server.api import status_views
from flexlora_server.api.auth import Anyone, Operator
from flexlora_server.api.openapi_examples import RETRY
from flexlora_server.api.services import Coordinator, of
from flexlora_server.api.strict_json import RoundPath, RunPath, problems, router
from flexlora_server.database.queries import events, rounds, runs
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.lifecycle import transitions
from flexlora_server.state_machine import OVER
from flexlora_shared.messages.status import Event, RetryRequest, RoundDetail, RoundList, RoundSummary
from flexlora_shared.problems import Code

routes = router("rounds")
LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**31, description="resume behind this event")]


@routes.get("/v1/runs/{run}/rounds", responses=problems(Code.RUN_NOT_FOUND))
def list_rounds(request: Request, name: RunPath, who: Anyone) -> RoundList:
    """A run's rounds, newest first; the latest attempt of each."""
    coordinator = of(request)
    window = coordinator.settings.presence_window
    with coordinator.store.reading() as tx:
        run = runs.get(tx, name)
        found = rounds.every(tx, name)
        return RoundList(rounds=tuple(status_views.round_summary(tx, run, round_, window) for round_ in found))


@routes.get("/v1/runs/{run}/rounds/{number}", responses=problems(Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND))
def show_round(request: Request, name: RunPath, number: RoundPath, who: Anyone) -> RoundDetail:
    """One round: its state, deadline, participants by state, what it waits for, its figures by module."""
    coordinator = of(request)
    window = coordinator.settings.presence_window
    with coordinator.store.reading() as tx:
        run = runs.get(tx, name)
        round_ = rounds.latest(tx, name, number)
        return status_views.round_detail(tx, run, round_, window, operator=who.client_id is None)


@routes.post(
    "/v1/runs/{run}/rounds/{number}/retry",
    responses=problems(
        Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND, Code.ROUND_STATE, Code.UPLOAD_NOT_FOUND
    ),
)
def retry_round(
    request: Request,
    name: RunPath,
    number: RoundPath,
    asked: Annotated[RetryRequest, Body(examples=[RETRY])],
    who: Operator,
) -> RoundSummary:
    """Aggregate a failed round again, without the uploads named; also one whose attempts go on failing."""
    coordinator = of(request)
    with coordinator.store.transaction() as tx:
        run = runs.lock(tx, name)
        round_ = rounds.latest(tx, name, number)
        transitions.retry(tx, run, round_, asked.exclude)
        return status_views.round_summary(tx, run, round_, coordinator.settings.presence_window)


def _existing(request: Request, name: RunPath, who: Anyone) -> str:
    """The run's name, refused before the stream begins where there is none."""
    with of(request).store.reading() as tx:
        return runs.get(tx, name).name


@routes.get(
    "/v1/runs/{run}/events",
    response_class=EventSourceResponse,
    responses=problems(Code.RUN_NOT_FOUND),
)
async def watch_events(
    request: Request, run: Annotated[str, Depends(_existing)], last: LastEventId = 0
) -> AsyncIterator[ServerSentEvent]:
    """Every state change as a server-sent event, from the run's beginning or behind `Last-Event-ID`; ends with the run."""
    coordinator = of(request)
    while True:
        found, version, over = await run_in_threadpool(_events, coordinator, run, last)
        for event in found:
            last = event.id
            yield ServerSentEvent(data=event, event=event.kind, id=str(event.id))
        if over and not found:
            return
        if not found:
            await coordinator.lobby.change(run, version, 10)


def _events(coordinator: Coordinator, name: str, last: int) -> tuple[list[Event], int, bool]:
    """The events behind `last`; and of the run, read before them: its version, and whether it is over."""
    with coordinator.store.reading() as tx:
        run = runs.get(tx, name)
        found = [
            Event(id=row.id, run=row.run, at=rfc3339(row.at), kind=row.kind, round=row.round, detail=row.detail)
            for row in events.after(tx, name, last)
        ]
        return found, run.version, run.state in OVER
