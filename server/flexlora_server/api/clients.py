"""Routes of clients: enrollment, API keys, and the operator's list."""

from typing import Annotated

from fastapi import Body, Request, Response

from flexlora_server.api.auth import ClientId, Operator
from flexlora_server.api.services import get_services
from flexlora_server.api.strict_json import ClientPath, problems, router
from flexlora_server.database.queries import clients
from flexlora_server.database.timestamps import rfc3339, rfc3339_or_none
from flexlora_shared.messages.clients import ClientInfo, ClientList, Credentials, Enrollment, Token, TokenRequest
from flexlora_shared.problems import Code

routes = router("clients")
_TOKEN = {"expires_in": 86400, "note": "St. Mary's, radiology"}
_ENROLLMENT = {"token": "flt_0123456789abcdef_…", "name": "st-marys"}


@routes.post("/v1/enrolment-tokens", status_code=201, responses=problems(Code.FORBIDDEN))
def create_token(request: Request, body: Annotated[TokenRequest, Body(examples=[_TOKEN])], who: Operator) -> Token:
    """A one-time token to hand to a participant; shown once."""
    with get_services(request).store.transaction() as tx:
        return clients.create_token(tx, body)


@routes.post("/v1/clients", status_code=201, responses=problems(Code.TOKEN_INVALID))
def enroll(request: Request, body: Annotated[Enrollment, Body(examples=[_ENROLLMENT])]) -> Credentials:
    """Redeem a token; the answer holds the API key, once."""
    with get_services(request).store.transaction() as tx:
        return clients.enroll(tx, body)


@routes.get("/v1/clients", responses=problems(Code.FORBIDDEN))
def list_clients(request: Request, who: Operator) -> ClientList:
    """Every client ever enrolled, oldest first."""
    with get_services(request).store.reading() as tx:
        issued = clients.key_issue_times(tx)
        return ClientList(
            clients=tuple(
                ClientInfo(
                    client_id=row.id,
                    name=row.name,
                    enrolled_at=rfc3339(row.enrolled_at),
                    revoked_at=rfc3339_or_none(row.revoked_at),
                    key_issued_at=rfc3339_or_none(issued.get(row.id)),
                )
                for row in clients.list_all(tx)
            )
        )


@routes.delete(
    "/v1/clients/{client}",
    status_code=204,
    response_class=Response,
    responses=problems(Code.FORBIDDEN, Code.CLIENT_NOT_FOUND),
)
def revoke_client(request: Request, client: ClientPath, who: Operator) -> None:
    """End a client's keys. Updates it had accepted still count."""
    with get_services(request).store.transaction() as tx:
        clients.revoke(tx, client)


@routes.post("/v1/clients/me/keys", status_code=201, responses=problems(Code.FORBIDDEN))
def rotate_key(request: Request, client: ClientId) -> Credentials:
    """A new API key; the old one ends when the new one is first used."""
    with get_services(request).store.transaction() as tx:
        return clients.rotate(tx, client)
