"""A process that simulates thousands of idle agents: a socket each, which polls, reads the answer, and polls again."""

import asyncio
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlsplit


@dataclass
class Tally:
    """What the agents saw since they were last asked."""

    polls: int = 0
    unexpected: int = 0
    open: set["Agent"] = field(default_factory=set)


class Agent(asyncio.Protocol):
    """One agent on one connection; it polls until it is closed."""

    def __init__(self, head: bytes, tally: Tally) -> None:
        self._head, self._tally, self._answer = head, tally, b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Poll for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._tally.open.add(self)
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        """An answer without a body: poll again."""
        self._answer += data
        if self._answer.endswith(b"\r\n\r\n"):
            self._tally.polls += 1
            self._tally.unexpected += not self._answer.startswith(b"HTTP/1.1 204")
            self._answer = b""
            assert self.transport is not None
            self.transport.write(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it out."""
        self._tally.open.discard(self)


def agents(url: str, run: str, keys: list[str], wait: int, ramp: float, asked: Connection) -> None:
    """Let an agent for every key wait until "end" comes; every word is answered with polls, unexpected answers, open sockets."""
    asyncio.run(_agents(url, run, keys, wait, ramp, asked))


async def _agents(url: str, run: str, keys: list[str], wait: int, ramp: float, asked: Connection) -> None:
    parts, tally = urlsplit(url), Tally()
    loop, arriving = (
        asyncio.get_running_loop(),
        asyncio.ensure_future(_arrive(parts.netloc, run, keys, wait, ramp, tally)),
    )
    word = ""
    while word != "end":
        word = await loop.run_in_executor(None, asked.recv)
        asked.send((tally.polls, tally.unexpected, len(tally.open)))
        tally.polls = tally.unexpected = 0
    await arriving
    for agent in list(tally.open):
        assert agent.transport is not None
        agent.transport.abort()


async def _arrive(netloc: str, run: str, keys: list[str], wait: int, ramp: float, tally: Tally) -> None:
    host, _, port = netloc.rpartition(":")
    loop = asyncio.get_running_loop()
    for key in keys:
        lines = (f"GET /v1/runs/{run}/task?wait={wait} HTTP/1.1", f"Host: {netloc}", f"Authorization: Bearer {key}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        await loop.create_connection(lambda head=head: Agent(head, tally), host, int(port))  # type: ignore[misc]
        await asyncio.sleep(ramp / len(keys))
