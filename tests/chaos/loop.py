"""Calls an ASGI application in this thread, with no socket and no time: a wait costs nothing, and calls may nest."""

import asyncio
import json
import selectors
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable, Coroutine, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import ASGIApp

T = TypeVar("T")
Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One call; of a `cut` one, the body ends after so many bytes and the connection with it."""

    method: str
    path: str
    key: str | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None

    def __str__(self) -> str:
        told = f"{self.method} {self.path}"
        told += f" at {self.headers['upload-offset']}" if "upload-offset" in self.headers else ""
        return told + (f", {len(self.body)} bytes" if self.method == "PATCH" else "")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, where it is JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code, "" of an answer that is none."""
        return str(self.json["code"]) if "problem" in self.headers.get("content-type", "") else ""


class _NoWait(selectors.SelectSelector):
    """Never waits: the time asked for is over at once."""

    def __init__(self, loops: "Loops") -> None:
        super().__init__()
        self._loops = loops

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "a call waits for something that nobody will bring"
        self._loops.waited += max(0.0, timeout) + 1e-6  # past it, however sums are rounded
        return []


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on the simulated time, whose threads are this one."""

    def __init__(self, loops: "Loops") -> None:
        self._loops = loops
        super().__init__(_NoWait(loops))

    def time(self) -> float:
        """That of all of them."""
        return self._loops.time()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do it now."""
        done: asyncio.Future[T] = self.create_future()
        done.set_result(func(*args))
        return done


class Loops:
    """Event loops, one inside the other as deep as calls nest."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.waited = clock, 0.0
        self._idle: list[_Loop] = []

    def time(self) -> float:
        """The simulated time, and what was waited for."""
        return self.clock() + self.waited

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, also from within another call."""
        outer = _get_running_loop()
        _set_running_loop(None)
        loop = self._idle.pop() if self._idle else _Loop(self)
        try:
            return loop.run_until_complete(work)
        finally:
            self._idle.append(loop)
            _set_running_loop(outer)

    def close(self) -> None:
        """Give the loops back."""
        for loop in self._idle:
            loop.close()


async def exchange(app: ASGIApp, request: Request) -> Answer:
    """Hand a request to the application and collect its answer."""
    whole = request.cut is None
    sent: Iterator[Message] = iter(
        [{"type": "http.request", "body": request.body[: request.cut], "more_body": not whole}]
    )
    answer: list[Message] = []

    async def receive() -> Message:
        message = next(sent, None)
        if message is None and whole:
            await asyncio.get_running_loop().create_future()  # connected, and silent
        return message or {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer.append(message)

    await app(_scope(request), receive, send)
    headers = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return Answer(answer[0]["status"], headers, b"".join(part.get("body", b"") for part in answer[1:]))


def _scope(request: Request) -> Message:
    path, _, query = request.path.partition("?")
    headers = {"host": "coordinator", "content-length": str(len(request.body)), **request.headers}
    if request.key is not None:
        headers["authorization"] = f"Bearer {request.key}"
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("agent", 1), "server": ("coordinator", 80),
    }  # fmt: skip
