"""Says on every answer which version answers, and refuses a client of another protocol before anything is read of its call."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flexlora_server.api.error_handlers import problem_response
from flexlora_shared.problems import Code, Problem
from flexlora_shared.versions import disagreement, version_headers


class Versions:
    """Around the application: an ASGI middleware, which leaves bodies and waiting calls alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in version_headers().items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        wrong = disagreement(Headers(scope=scope), "the client", "this coordinator")
        if wrong is None or not scope["path"].startswith("/v1/"):  # who asks for health or the page wants no protocol
            await self._app(scope, receive, told)
        else:
            problem = Problem.of(Code.PROTOCOL_MISMATCH, f"{wrong[0].upper()}{wrong[1:]}.")
            await problem_response(problem)(scope, receive, told)
