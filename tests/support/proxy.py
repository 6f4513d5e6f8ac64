"""A TCP proxy that makes a network bad: it cuts, resets, swallows, slows down and delays, as planned, and counts bytes.

A fault strikes when so many bytes have gone one way, over all connections: bytes before the place are handed on, none after.
Whoever waits on the connection sees what a real network shows: an end, a reset, or nothing at all.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Literal

Way = Literal["up", "down"]  # to the target, or from it
Kind = Literal["cut", "reset", "hole"]  # an orderly end; RST to both sides; the connection swallows from then on
CHUNK = 1 << 16
SLOW_BUFFER = 1 << 15  # of a slowed proxy's sockets: a slow line holds little


@dataclass(frozen=True)
class Fault:
    """What happens to the connection that carries byte number `at` of its way."""

    kind: Kind
    way: Way
    at: int


def scattered(seed: int, count: int, way: Way, size: int, kinds: Sequence[Kind] = ("cut", "reset")) -> list[Fault]:
    """`count` faults at places drawn from the first `size` bytes of one way."""
    random = Random(seed)
    return [Fault(random.choice(kinds), way, at) for at in sorted(random.sample(range(size), count))]


@dataclass(frozen=True)
class Marked:
    """A fault that is placed once the bytes sent up hold `text`: `after` bytes of its way later."""

    kind: Kind
    way: Way
    text: bytes
    after: int


@dataclass
class Proxy:
    """The running proxy, as a test sees it."""

    target: tuple[str, int]
    faults: list[Fault]  # still to strike
    rate: float | None  # bytes a second, each way of each connection
    latency: float  # seconds, each way
    port: int = 0
    connections: int = 0
    taken: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})  # bytes from either side so far
    marked: list[Marked] = field(default_factory=list)  # still to be placed
    struck: threading.Event = field(default_factory=threading.Event)  # a fault has
    loop: asyncio.AbstractEventLoop = field(init=False)
    open: set[asyncio.Task[None]] = field(default_factory=set)
    gone: bool = False  # there is no network: whoever connects is cut off

    @property
    def url(self) -> str:
        """Where to reach the target through the proxy, over HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Close all connections, and each that is opened until `mend`."""
        self.gone = True
        self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in self.open])

    def mend(self) -> None:
        """Hand on again."""
        self.loop.call_soon_threadsafe(setattr, self, "gone", False)  # after those that were open are closed

    def take(self, way: Way, content: bytes) -> tuple[bytes, Kind | None]:
        """Count bytes: those to hand on, and what strikes behind them."""
        for marked in [one for one in self.marked if way == "up" and one.text in content]:
            self.marked.remove(marked)
            self.faults.append(Fault(marked.kind, marked.way, self.taken[marked.way] + marked.after))
        begin = self.taken[way]
        self.taken[way] += len(content)
        fault = next((fault for fault in self.faults if fault.way == way), None)
        if fault is None or not content or fault.at > self.taken[way]:
            return content, None
        self.faults.remove(fault)
        self.struck.set()
        return content[: max(0, fault.at - begin)], fault.kind


@contextmanager
def proxy(
    url: str, faults: Sequence[Fault] = (), *, rate: float | None = None, latency: float = 0.0
) -> Iterator[Proxy]:
    """A proxy in front of the server at `url` for the block; faults of one way strike in their order."""
    host, port = url.removeprefix("http://").split(":")
    state = Proxy((host, int(port)), list(faults), rate, latency)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _narrow(listener, state)
        state.port = listener.getsockname()[1]
        loop = state.loop = asyncio.new_event_loop()
        serving = loop.create_task(_serve(state, listener))
        thread = threading.Thread(target=_run, args=(loop, serving))
        thread.start()
        try:
            yield state
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join()


def _run(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(serving)
    loop.close()


def _narrow(end: socket.socket, state: Proxy) -> None:
    if state.rate is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SLOW_BUFFER)


async def _serve(state: Proxy, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    async with asyncio.TaskGroup() as going:
        while True:
            near, _ = await loop.sock_accept(listener)
            if state.gone:
                near.close()
                continue
            state.connections += 1
            task = going.create_task(_connection(state, near))
            state.open.add(task)
            task.add_done_callback(state.open.discard)
            task.add_done_callback(partial(_closed, near))  # cancelled before it began


def _closed(near: socket.socket, _: object) -> None:
    near.close()


async def _connection(state: Proxy, near: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with near, socket.socket() as far:
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _narrow(far, state)
        with contextlib.suppress(OSError):  # a side is gone: so is the connection
            await loop.sock_connect(far, state.target)
            struck = await _first(_carry(state, "up", near, far), _carry(state, "down", far, near))
            if struck == "hole":
                await asyncio.gather(_swallow(near), _swallow(far))
            for end in (near, far) if struck == "reset" else ():
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _first(*ways: Coroutine[Any, Any, Kind | None]) -> Kind | None:
    """How the way ended that did so first: HTTP has nothing to say on a connection that is closed on one side."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next((task.result() for task in done if task.result()), None)
    finally:
        await _ended(*tasks)


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class _Chunk:
    """Bytes on the line and when they are to arrive; none: the source has ended, or a fault strikes behind them."""

    due: float
    content: bytes
    struck: Kind | None = None


async def _carry(state: Proxy, way: Way, source: socket.socket, target: socket.socket) -> Kind | None:
    """Hand on one way's bytes in their time, until the source ends or a fault strikes: which."""
    loop = asyncio.get_running_loop()
    line: asyncio.Queue[_Chunk] = asyncio.Queue(16)
    taking = asyncio.ensure_future(_take(state, way, source, line))
    try:
        while True:
            chunk = await line.get()
            if chunk.due > loop.time():
                await asyncio.sleep(chunk.due - loop.time())
            await loop.sock_sendall(target, chunk.content)
            if chunk.struck or not chunk.content:
                return chunk.struck
    finally:
        await _ended(taking)


async def _take(state: Proxy, way: Way, source: socket.socket, line: asyncio.Queue[_Chunk]) -> None:
    """Put what the source sends on the line, at the proxy's rate, until it ends or a fault strikes."""
    loop = asyncio.get_running_loop()
    most = CHUNK if state.rate is None else max(1, min(CHUNK, int(state.rate / 20)))
    content, struck = b"-", None
    while content and struck is None:
        try:
            content = await loop.sock_recv(source, most)
        except OSError:
            content = b""
        before, struck = state.take(way, content)
        if state.rate is not None:
            await asyncio.sleep(len(content) / state.rate)
        await line.put(_Chunk(loop.time() + state.latency, before, struck))


async def _swallow(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(end, CHUNK):
            pass
    await asyncio.Event().wait()  # the other side learns of nothing
