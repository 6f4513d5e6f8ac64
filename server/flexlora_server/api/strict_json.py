"""What all routes share: bounded JSON without NaN or duplicate keys, bounded path parameters, documented problems."""

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request, Response
from fastapi.routing import APIRoute

from flexlora_server.api.services import of
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, PROBLEMS, Code, Problem

RunPath = Annotated[
    str, Path(alias="run", pattern=r"^[a-z0-9-]{1,63}$", description="the run's name", examples=["demo"])
]
RoundPath = Annotated[int, Path(alias="number", ge=0, le=1_000_000, description="the round's number", examples=[1])]
UploadPath = Annotated[str, Path(alias="upload", pattern=r"^[0-9a-f]{32}$", description="the upload's id")]
ClientPath = Annotated[str, Path(alias="client", pattern=r"^[0-9a-f]{16}$", description="the client's id")]


class StrictRequest(Request):
    """A request whose body is bounded, and whose JSON may say every thing once, and numbers only."""

    async def body(self) -> bytes:
        """The whole body. (The framework's own limit answers in plain text, and would hold for parts of uploads too.)"""
        if not hasattr(self, "_body"):
            most, received = of(self).settings.max_json_body, bytearray()
            async for chunk in self.stream():
                received += chunk
                if len(received) > most:
                    raise HTTPException(413)
            self._body = bytes(received)
        return self._body

    async def json(self) -> Any:
        """The body, refused where JSON is ambiguous: duplicate keys, NaN, infinities (RFC 8259, sections 4 and 6)."""
        try:
            return json.loads(await self.body(), object_pairs_hook=_pairs, parse_constant=_constant)
        except (UnicodeDecodeError, RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
            raise json.JSONDecodeError(str(error), "", 0) from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise json.JSONDecodeError("an object names a key twice", "", 0)
    return found


def _constant(name: str) -> Any:
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
    """OpenAPI's description of the problems a call may answer with; those of every call among them."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in (Code.UNAUTHENTICATED, Code.PROTOCOL_MISMATCH, Code.INVALID_REQUEST, *codes):
        known = PROBLEMS[code]
        example = Problem.of(code, known.title).model_dump(mode="json")
        answer = by_status.setdefault(
            known.status, {"description": "", "content": {PROBLEM_MEDIA_TYPE: {"examples": {}}}}
        )
        answer["description"] = ", ".join(filter(None, [answer["description"], f"`{code}`"]))
        answer["content"][PROBLEM_MEDIA_TYPE]["examples"][str(code)] = {"value": example}
    return by_status
