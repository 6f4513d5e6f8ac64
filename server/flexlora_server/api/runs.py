"""Routes of runs: define, list, show, start, pause, resume, cancel."""

from typing import Annotated

from fastapi import Body, Request

from flexlora_server.api import status_views
from flexlora_server.api.auth import Anyone, Operator
from flexlora_server.api.openapi_examples import ROLLBACK, RUN_SPEC
from flexlora_server.api.services import get_services
from flexlora_server.api.strict_json import RunPath, problems, router
from flexlora_server.database.queries import runs
from flexlora_server.lifecycle import transitions
from flexlora_server.lifecycle.new_run import with_defaults
from flexlora_server.lifecycle.start_adapter import with_start
from flexlora_server.lifecycle.validation import check_spec
from flexlora_server.state_machine import Action
from flexlora_shared.messages.runs import RunDetail, RunList, RunSpec, RunStatus
from flexlora_shared.messages.status import RollbackRequest
from flexlora_shared.problems import Code
from flexlora_shared.run_checks import warnings

routes = router("runs")


_CREATION = problems(Code.FORBIDDEN, Code.RUN_EXISTS, Code.INVALID_RUN, Code.RUN_NOT_FOUND, Code.ADAPTER_NOT_PUBLISHED)


@routes.post("/v1/runs", status_code=201, responses=_CREATION)
def create_run(request: Request, spec: Annotated[RunSpec, Body(examples=[RUN_SPEC])], who: Operator) -> RunDetail:
    """Define a run. It waits in DRAFT until it is started."""
    spec = with_defaults(spec)
    check_spec(spec)
    services = get_services(request)
    with services.store.transaction() as tx:
        spec = with_start(tx, spec)
        run = runs.create(tx, spec)
        status = status_views.run_status(tx, run, services.settings.presence_window)
        return RunDetail(status=status, spec=spec, warnings=warnings(spec))


@routes.get("/v1/runs", responses=problems())
def list_runs(request: Request, who: Anyone) -> RunList:
    """Every run, newest first."""
    services = get_services(request)
    window = services.settings.presence_window
    with services.store.reading() as tx:
        return RunList(runs=tuple(status_views.run_status(tx, run, window) for run in runs.list_all(tx)))


@routes.get("/v1/runs/{run}", responses=problems(Code.RUN_NOT_FOUND))
def show_run(request: Request, name: RunPath, who: Anyone) -> RunDetail:
    """A run's definition and status."""
    services = get_services(request)
    with services.store.reading() as tx:
        run = runs.get(tx, name)
        status = status_views.run_status(tx, run, services.settings.presence_window)
        spec = runs.spec_of(run)
        return RunDetail(status=status, spec=spec, warnings=warnings(spec))


_REFUSALS = problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_STATE)


@routes.post("/v1/runs/{run}/start", responses=_REFUSALS)
def start_run(request: Request, name: RunPath, who: Operator) -> RunStatus:
    """DRAFT -> RUNNING: publish round 0 and gather participants."""
    return _act(request, name, "start")


@routes.post("/v1/runs/{run}/pause", responses=_REFUSALS)
def pause_run(request: Request, name: RunPath, who: Operator) -> RunStatus:
    """RUNNING -> PAUSED: the round in progress finishes, no further one begins."""
    return _act(request, name, "pause")


@routes.post("/v1/runs/{run}/resume", responses=_REFUSALS)
def resume_run(request: Request, name: RunPath, who: Operator) -> RunStatus:
    """PAUSED -> RUNNING."""
    return _act(request, name, "resume")


@routes.post("/v1/runs/{run}/cancel", responses=_REFUSALS)
def cancel_run(request: Request, name: RunPath, who: Operator) -> RunStatus:
    """End an unfinished run for good; what it has published stays."""
    return _act(request, name, "cancel")


@routes.post(
    "/v1/runs/{run}/rollback",
    responses=problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.RUN_STATE, Code.ADAPTER_NOT_PUBLISHED),
)
def roll_back_run(
    request: Request, name: RunPath, body: Annotated[RollbackRequest, Body(examples=[ROLLBACK])], who: Operator
) -> RunStatus:
    """Publish the adapter of an earlier round again, as a new round, and go on from it; the round under way is abandoned."""
    services = get_services(request)
    with services.store.transaction() as tx:
        run = runs.lock(tx, name)
        transitions.roll_back(tx, run, body.to)
        return status_views.run_status(tx, run, services.settings.presence_window)


def _act(request: Request, name: str, action: Action) -> RunStatus:
    services = get_services(request)
    with services.store.transaction() as tx:
        run = runs.lock(tx, name)
        if action == "start":
            transitions.start(tx, run)
        elif action == "cancel":
            transitions.cancel(tx, run)
        else:
            runs.apply_action(tx, run, action)
        return status_views.run_status(tx, run, services.settings.presence_window)
