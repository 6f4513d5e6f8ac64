"""Routes for operating: liveness, readiness, and metrics for Prometheus."""

from typing import Annotated, Literal

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel, Field
from sqlalchemy import func, select, text
from sqlalchemy.orm import InstrumentedAttribute

from flexlora_server.api.auth import Operator
from flexlora_server.api.services import get_services
from flexlora_server.api.strict_json import problems, router
from flexlora_server.database.schema import Client, Round, Run, Upload
from flexlora_server.database.transactions import Tx
from flexlora_shared.problems import Code
from flexlora_shared.versions import PROTOCOL, version

routes = router("health")


class Alive(BaseModel):
    """A living process: the version of its program and of its protocol."""

    status: Annotated[Literal["alive"], Field(description="The process answers")] = "alive"
    version: Annotated[str, Field(description="Version of the program")]
    protocol: Annotated[int, Field(description="Number of the protocol")]


@routes.get("/healthz")
async def alive() -> Alive:
    """200 while the process lives, and which version it is."""
    return Alive(version=version(), protocol=PROTOCOL)


@routes.get("/readyz", responses=problems(Code.UNAVAILABLE, Code.STORAGE_FULL))
def ready(request: Request) -> dict[str, str]:
    """200 when the database answers and the storage takes writes."""
    services = get_services(request)
    with services.store.reading() as tx:
        tx.session.execute(text("SELECT 1"))
    services.blobs.check_writable()
    return {"status": "ready"}


@routes.get("/metrics", response_class=Response, responses=problems(Code.FORBIDDEN))
def metrics(request: Request, who: Operator) -> Response:
    """The coordinator's metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    waiting = Gauge("flexlora_waiting_agents", "Agents waiting for work at this coordinator", registry=registry)
    waiting.set(get_services(request).waiting_room.waiting)
    with get_services(request).store.reading() as tx:
        _counts(tx, registry, "flexlora_runs", "Runs by state", Run.state)
        _counts(tx, registry, "flexlora_round_attempts", "Attempts at rounds by state", Round.state)
        _counts(tx, registry, "flexlora_uploads", "Uploads by state", Upload.state)
        enrolled = select(func.count()).select_from(Client).where(Client.revoked_at.is_(None))
        gauge = Gauge("flexlora_clients", "Enrolled clients", registry=registry)
        gauge.set(tx.session.scalar(enrolled) or 0)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _counts(tx: Tx, registry: CollectorRegistry, name: str, help_: str, column: InstrumentedAttribute[str]) -> None:
    gauge = Gauge(name, help_, ["state"], registry=registry)
    for state, count in tx.session.execute(select(column, func.count()).group_by(column)):
        gauge.labels(state).set(count)
