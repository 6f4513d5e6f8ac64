"""Adds the version headers to every response, and refuses a client of another protocol before its request is read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flexlora_server.api.error_handlers import problem_response
from flexlora_shared.problems import Code, Problem
from flexlora_shared.versions import disagreement, version_headers


class VersionMiddleware:
    """ASGI middleware; it does not touch bodies or waiting calls."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in version_headers().items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_versions(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        mismatch = disagreement(Headers(scope=scope), "the client", "this coordinator")
        versioned = scope["path"].startswith(
            "/v1/"
        )  # health, metrics and the status page belong to no protocol version
        if mismatch is None or not versioned:
            await self._app(scope, receive, send_with_versions)
        else:
            problem = Problem.of(Code.PROTOCOL_MISMATCH, f"{mismatch[0].upper()}{mismatch[1:]}.")
            await problem_response(problem)(scope, receive, send_with_versions)
