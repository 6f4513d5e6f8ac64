"""A coordinator that misbehaves as planned: each request gets the next planned answer, over a real socket."""

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flexlora_shared.messages.base import Message
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, Code, Problem


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


Planned = Callable[[BaseHTTPRequestHandler, Asked], None]


@dataclass
class Misbehaving:
    """Its plan, what it was asked, and where it listens."""

    plan: list[Planned] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    @property
    def calls(self) -> list[str]:
        """Method and path of every request, without queries."""
        return [f"{asked.method} {asked.path.partition('?')[0]}" for asked in self.asked]


def answer(status: int, body: bytes = b"", **headers: str) -> Planned:
    """An answer as asked for; underscores in header names become hyphens."""

    def planned(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if status not in (204, 304):
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return planned


def message(body: Message, status: int = 200) -> Planned:
    """A message of the protocol."""
    return answer(status, body.model_dump_json().encode(), Content_Type="application/json")


def problem(code: Code, retry_after: int | None = None, **context: object) -> Planned:
    """A refusal."""
    body = Problem.of(code, f"Planned {code}.", **context)
    headers = {} if retry_after is None else {"Retry_After": str(retry_after)}
    return answer(body.status, body.model_dump_json().encode(), Content_Type=PROBLEM_MEDIA_TYPE, **headers)


def cut(body: bytes, after: int, status: int = 200, **headers: str) -> Planned:
    """Announce the whole body, send its first `after` bytes, hang up."""

    def planned(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:after])
        handler.close_connection = True

    return planned


def hang_up(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


@contextmanager
def misbehaving(*plan: Planned, tls: ssl.SSLContext | None = None) -> Iterator[Misbehaving]:
    """The server, listening for the block; a request beyond its plan gets a plain 500 that fails the test."""
    state = Misbehaving(list(plan))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, self.rfile.read(length))
            state.asked.append(asked)
            planned = state.plan.pop(0) if state.plan else answer(418, json.dumps("beyond the plan").encode())
            planned(self, asked)

        do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = do_DELETE = do_CONNECT = _answer

        def handle(self) -> None:
            with contextlib.suppress(ssl.SSLError, ConnectionError):  # who doubts a certificate hangs up
                super().handle()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.url = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
