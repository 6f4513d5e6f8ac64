"""What all routes share: bounded JSON bodies without NaN or duplicate keys, path parameters, documented problems."""

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Path, Request, Response
from fastapi.routing import APIRoute

from flexlora_server.api.services import get_services
from flexlora_shared.messages.clients import INSTANCE_HEADER, INSTANCE_PATTERN
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, PROBLEMS, Code, Problem

RunPath = Annotated[
    str, Path(alias="run", pattern=r"^[a-z0-9-]{1,63}$", description="the run's name", examples=["demo"])
]
RoundPath = Annotated[int, Path(alias="number", ge=0, le=1_000_000, description="the round's number", examples=[1])]
UploadPath = Annotated[str, Path(alias="upload", pattern=r"^[0-9a-f]{32}$", description="the upload's id")]
ClientPath = Annotated[str, Path(alias="client", pattern=r"^[0-9a-f]{16}$", description="the client's id")]
Instance = Annotated[
    str | None,
    Header(alias=INSTANCE_HEADER, pattern=INSTANCE_PATTERN, description="a random name of the agent's process"),
]


class StrictRequest(Request):
    """A request whose body is bounded, and whose JSON has no duplicate keys and no NaN or infinity."""

    async def body(self) -> bytes:
        """The whole body, at most `max_json_body` bytes. (FastAPI's own limit answers in plain text and holds for parts.)

        Raises:
            HTTPException: 413.
        """
        if not hasattr(self, "_body"):
            limit, received = get_services(self).settings.max_json_body, bytearray()
            async for chunk in self.stream():
                received += chunk
                if len(received) > limit:
                    raise HTTPException(413)
            self._body = bytes(received)
        return self._body

    async def json(self) -> Any:
        """The body, refused where JSON is ambiguous: duplicate keys, NaN, infinities (RFC 8259, sections 4 and 6)."""
        try:
            return json.loads(await self.body(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        except (UnicodeDecodeError, RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
            raise json.JSONDecodeError(str(error), "", 0) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise json.JSONDecodeError("an object names a key twice", "", 0)
    return members


def _refuse_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is not a JSON number", "", 0)


class StrictRoute(APIRoute):
    """A route that reads its body as `StrictRequest` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, handed a strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def router(*tags: str) -> APIRouter:
    """A router of strict routes."""
    return APIRouter(tags=list(tags), route_class=StrictRoute)


def problems(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems a call may answer with: `codes`, and those of every call."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in (Code.UNAUTHENTICATED, Code.PROTOCOL_MISMATCH, Code.INVALID_REQUEST, *codes):
        kind = PROBLEMS[code]
        example = Problem.of(code, kind.title).model_dump(mode="json")
        response = by_status.setdefault(
            kind.status, {"description": "", "content": {PROBLEM_MEDIA_TYPE: {"examples": {}}}}
        )
        response["description"] = ", ".join(filter(None, [response["description"], f"`{code}`"]))
        response["content"][PROBLEM_MEDIA_TYPE]["examples"][str(code)] = {"value": example}
    return by_status
