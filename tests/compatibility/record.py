"""Records what this tree's agent and coordinator say to each other, one exchange a line: `python -m tests.compatibility.record`.

Run it in the tree of a release; later trees are tested against what it prints, in `recorded/`.
"""

import base64
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2

from tests.compatibility.scenario import live
from tests.support.kit import Served, served_on_sqlite

# of the connection, not of the protocol
LEFT_OUT = frozenset(
    {"host", "connection", "accept", "accept-encoding", "content-length", "transfer-encoding", "date", "server"}
)


def body(content: bytes) -> Any:
    """A message as JSON; other bytes as base64."""
    try:
        return json.loads(content) if content else None
    except ValueError:
        return {"base64": base64.b64encode(content).decode()}


def headers(found: Mapping[str, str]) -> dict[str, str]:
    """The headers that belong to the protocol, names in lower case."""
    return {name.lower(): value for name, value in found.items() if name.lower() not in LEFT_OUT}


def main() -> None:
    """Print the exchanges of one run."""
    send = httpx2.HTTPTransport.handle_request

    def recorded(self: httpx2.HTTPTransport, request: httpx2.Request) -> httpx2.Response:
        sent = request.read()
        answer = send(self, request)
        content = answer.read()
        line = {
            "call": f"{request.method} {request.url.raw_path.decode()}",
            "sent": [headers(request.headers), body(sent)],
            "answered": [answer.status_code, headers(answer.headers), body(content)],
        }
        print(json.dumps(line))
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=httpx2.ByteStream(content))

    patched = patch.object(httpx2.HTTPTransport, "handle_request", recorded)
    with tempfile.TemporaryDirectory() as folder, served_on_sqlite(Path(folder)) as site, working(site), patched:
        live(site.url, Path(folder) / "home")


@contextmanager
def working(site: Served) -> Iterator[None]:
    """Let a worker aggregate for the block."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.01):
            site.work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
