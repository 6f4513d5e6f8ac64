"""Routes of rounds: the list, one in detail, a retry, and the event stream of a run."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Body, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from flexlora_server.api import status_views
from flexlora_server.api.auth import Anyone, Operator
from flexlora_server.api.openapi_examples import RETRY
from flexlora_server.api.services import Services, get_services
from flexlora_server.api.strict_json import RoundPath, RunPath, problems, router
from flexlora_server.database.queries import events, rounds, runs
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.lifecycle import transitions
from flexlora_server.lifecycle.round_record import read_record
from flexlora_server.state_machine import FINAL_STATES
from flexlora_shared.messages.records import RoundRecord
from flexlora_shared.messages.status import Event, RetryRequest, RoundDetail, RoundList, RoundSummary
from flexlora_shared.problems import Code

routes = router("rounds")
LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=2**31, description="resume behind this event")]


@routes.get("/v1/runs/{run}/rounds", responses=problems(Code.RUN_NOT_FOUND))
def list_rounds(request: Request, name: RunPath, who: Anyone) -> RoundList:
    """A run's rounds, newest first; the latest attempt of each."""
    services = get_services(request)
    window = services.settings.presence_window
    with services.store.reading() as tx:
        run = runs.get(tx, name)
        latest = rounds.list_latest(tx, name)
        return RoundList(rounds=tuple(status_views.round_summary(tx, run, round_, window) for round_ in latest))


@routes.get("/v1/runs/{run}/rounds/{number}", responses=problems(Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND))
def show_round(request: Request, name: RunPath, number: RoundPath, who: Anyone) -> RoundDetail:
    """One round: its state, deadline, participants by state, what it waits for, its metrics by module."""
    services = get_services(request)
    window = services.settings.presence_window
    with services.store.reading() as tx:
        run = runs.get(tx, name)
        round_ = rounds.latest(tx, name, number)
        return status_views.round_detail(tx, run, round_, window, operator=who.client_id is None)


@routes.get(
    "/v1/runs/{run}/rounds/{number}/record",
    responses=problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND, Code.ADAPTER_NOT_PUBLISHED),
)
def show_record(request: Request, name: RunPath, number: RoundPath, who: Operator) -> RoundRecord:
    """What a third party needs, beside the files, to aggregate a published round again: `flexlora-server replay`."""
    with get_services(request).store.reading() as tx:
        return read_record(tx, name, number)


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
    body: Annotated[RetryRequest, Body(examples=[RETRY])],
    who: Operator,
) -> RoundSummary:
    """Aggregate a failed round again, without the uploads named; also one whose attempts go on failing."""
    services = get_services(request)
    with services.store.transaction() as tx:
        run = runs.lock(tx, name)
        round_ = rounds.latest(tx, name, number)
        transitions.retry(tx, run, round_, body.exclude)
        return status_views.round_summary(tx, run, round_, services.settings.presence_window)


def _existing_run(request: Request, name: RunPath, who: Anyone) -> str:
    """The run's name, refused before the stream begins where there is none."""
    with get_services(request).store.reading() as tx:
        return runs.get(tx, name).name


@routes.get(
    "/v1/runs/{run}/events",
    response_class=EventSourceResponse,
    responses=problems(Code.RUN_NOT_FOUND),
)
async def watch_events(
    request: Request, run: Annotated[str, Depends(_existing_run)], last: LastEventId = 0
) -> AsyncIterator[ServerSentEvent]:
    """Every state change as a server-sent event, from the run's beginning or behind `Last-Event-ID`; ends with the run."""
    services = get_services(request)
    while True:
        new_events, version, over = await run_in_threadpool(_events, services, run, last)
        for event in new_events:
            last = event.id
            yield ServerSentEvent(data=event, event=event.kind, id=str(event.id))
        if over and not new_events:
            return
        if not new_events:
            await services.waiting_room.wait_for_change(run, version, 10)


def _events(services: Services, name: str, last: int) -> tuple[list[Event], int, bool]:
    """The events behind `last`; and of the run, read before them: its version, and whether it is over."""
    with services.store.reading() as tx:
        run = runs.get(tx, name)
        new_events = [
            Event(id=row.id, run=row.run, at=rfc3339(row.at), kind=row.kind, round=row.round, detail=row.detail)
            for row in events.after(tx, name, last)
        ]
        return new_events, run.version, run.state in FINAL_STATES
