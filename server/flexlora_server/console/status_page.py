"""The status page: runs, round progress, participants by rank, loss per round, energy kept. One page, no further assets."""

from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader
from starlette.concurrency import run_in_threadpool

from flexlora_server.api import status_views
from flexlora_server.api.auth import authenticate, bearer, password, require_operator
from flexlora_server.api.services import Services, get_services
from flexlora_server.api.strict_json import router
from flexlora_server.database.queries import rounds, runs
from flexlora_server.database.schema import Run
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_shared.messages.status import RoundSummary
from flexlora_shared.problems import Code

routes = router("page")
_templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
MAX_ROUNDS_SHOWN = 50  # of each run


@routes.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page; a browser asks for the operator's key as a password."""
    services, secret = get_services(request), bearer(request) or password(request)
    try:
        require_operator(await authenticate(request, secret, services.lookup_threads))
    except Refusal as refusal:
        if refusal.problem.code == Code.UNAUTHENTICATED:
            refusal.headers["WWW-Authenticate"] = 'Basic realm="flexlora: any name, the operator key as password"'
        raise
    return HTMLResponse(await run_in_threadpool(_render, services))


def _render(services: Services) -> str:
    window = services.settings.presence_window
    with services.store.reading() as tx:
        shown = [(status_views.run_status(tx, run, window), _rounds(tx, run, window)) for run in runs.list_all(tx)]
    return _templates.get_template("status.html").render(runs=shown)


def _rounds(tx: Tx, run: Run, window: float) -> list[tuple[RoundSummary, list[str]]]:
    """The newest rounds, and of each what participants failed on."""
    return [
        (status_views.round_summary(tx, run, round_, window), sorted(status_views.failures(tx, round_).values()))
        for round_ in rounds.list_latest(tx, run.name)[:MAX_ROUNDS_SHOWN]
    ]
