"""A minimal HTTP/1.1 client on non-blocking sockets, so cheap that the server is what is measured."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SPACE = 1 << 20  # bytes read at once


class Unexpected(Exception):
    """An answer other than the one the measurement counts on."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


class Connection:
    """One kept-alive connection; `key` is sent along as the bearer's."""

    def __init__(self, link: socket.socket, key: str) -> None:
        self._link, self._key = link, key
        self._space = bytearray(SPACE)

    async def call(
        self,
        expected: int,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Sequence[memoryview] = (),
    ) -> Answer:
        """One request and its answer.

        Raises:
            Unexpected: another status than `expected`.
        """
        with suppress(ConnectionError):  # refused before the body was read: the answer says why
            await self._send(method, path, headers or {}, body)
        answer = await self._answer()
        if answer.status != expected:
            raise Unexpected(f"{method} {path}: {answer.status} {answer.body[:300].decode(errors='replace')}")
        return answer

    async def say(self, expected: int, method: str, path: str, told: Any) -> Answer:
        """`call` with a JSON body.

        Raises:
            Unexpected: another status than `expected`.
        """
        body = [memoryview(json.dumps(told).encode())]
        return await self.call(expected, method, path, {"Content-Type": "application/json"}, body)

    async def download(self, path: str) -> int:
        """Read an answer's body and drop it; how many bytes it had.

        Raises:
            Unexpected: another status than 200.
        """
        await self._send("GET", path, {}, ())
        status, headers, begun = await self._head()
        if status != 200:
            raise Unexpected(f"GET {path}: {status}")
        left = int(headers["content-length"]) - len(begun)
        while left:
            left -= await self._read()
        return int(headers["content-length"])

    async def _send(self, method: str, path: str, headers: Mapping[str, str], body: Sequence[memoryview]) -> None:
        sent = {"Host": "coordinator", "Content-Length": str(sum(map(len, body))), **headers}
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        pieces: list[bytes | memoryview] = ["\r\n".join(lines).encode(), *body]
        for piece in pieces:
            await asyncio.get_running_loop().sock_sendall(self._link, piece)

    async def _answer(self) -> Answer:
        status, headers, body = await self._head()
        length = int(headers.get("content-length", "0"))
        while len(body) < length:
            count = await self._read()
            body += self._space[:count]
        return Answer(status, headers, bytes(body))

    async def _head(self) -> tuple[int, Mapping[str, str], bytearray]:
        """The status, the headers by name in lower case, and what of the body came with them."""
        read = bytearray()
        while (end := read.find(b"\r\n\r\n")) < 0:
            count = await self._read()
            read += self._space[:count]
        first, *rest = read[:end].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in rest)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, read[end + 4 :]

    async def _read(self) -> int:
        count = await asyncio.get_running_loop().sock_recv_into(self._link, self._space)
        if count == 0:
            raise Unexpected("the server closed the connection in the middle of an answer")
        return count


@asynccontextmanager
async def connected(url: str, key: str = "") -> AsyncIterator[Connection]:
    """A connection to the server at `url` for the block."""
    parts = urlsplit(url)
    with socket.socket() as link:
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(link, (parts.hostname, parts.port))
        yield Connection(link, key)
