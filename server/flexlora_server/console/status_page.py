"""The status page: runs, round progress, participants by rank, loss per round, energy kept. Server-rendered, no other assets."""

from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader

from flexlora_server.api import status_views
from flexlora_server.api.auth import bearer, identify, password, require_operator
from flexlora_server.api.services import of
from flexlora_server.api.strict_json import router
from flexlora_server.database.queries import rounds, runs
from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code

routes = router("page")
_templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
SHOWN = 50  # rounds a run


@routes.get("/", include_in_schema=False)
def page(request: Request) -> Response:
    """The page; a browser asks for the operator's key as a password."""
    try:
        require_operator(identify(of(request), bearer(request) or password(request)))
    except Refusal as refusal:
        if refusal.problem.code == Code.UNAUTHENTICATED:
            refusal.headers["WWW-Authenticate"] = 'Basic realm="flexlora: any name, the operator key as password"'
        raise
    coordinator = of(request)
    window = coordinator.settings.presence_window
    with coordinator.store.reading() as tx:
        shown = [
            (
                status_views.run_status(tx, run, window),
                [status_views.round_summary(tx, run, round_, window) for round_ in rounds.every(tx, run.name)[:SHOWN]],
            )
            for run in runs.every(tx)
        ]
    return HTMLResponse(_templates.get_template("status.html").render(runs=shown))
