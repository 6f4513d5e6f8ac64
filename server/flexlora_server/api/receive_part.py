"""Receives the bytes of one part of an upload: streamed to the disk and hashed on the way, in bounded memory."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import BinaryIO, ParamSpec, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code

PART_LIMIT = 8 << 20  # bytes of one part
BUFFER = 1 << 18  # bytes held before they go to the disk
GRACE = 10.0  # seconds before the least rate is asked for
SILENCE = 30.0  # seconds without a byte: the sender is gone, and may be waiting to go on by another connection
P = ParamSpec("P")
T = TypeVar("T")


class Sink:
    """Writes and hashes in a thread while the next bytes are received; `sha256` is right once `drain` has returned."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file, self._held, self._size = file, list[bytes](), 0
        self._writing: asyncio.Future[None] | None = None
        self._broken = False

    async def take(self, chunk: bytes) -> None:
        """Some more bytes."""
        self._held.append(chunk)  # never joined: this thread, which serves everybody, copies nothing
        self._size += max(len(chunk), 1024)  # many tiny ones take more room than their bytes
        if self._size >= BUFFER:
            await self._wait()
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, self._taken())

    async def drain(self) -> None:
        """Return when all is written, also where the request is cancelled: that goes on afterwards."""
        await self._wait()
        rest = self._taken()
        if rest and not self._broken:  # what follows bytes that the disk did not take is of no use
            await to_the_end(None, self._write, rest)

    async def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await finish(writing)

    def _taken(self) -> list[bytes]:
        """What is held; whoever takes it writes it, once."""
        held, self._held, self._size = self._held, [], 0
        return held

    def _write(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            try:
                self._file.write(chunk)
            except OSError:
                self._broken = True
                raise
            self.sha256.update(chunk)


async def to_the_end(threads: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a thread and wait until it is done, also where the request is cancelled: that goes on afterwards.

    None are the threads that every loop has.
    """
    return await finish(asyncio.get_running_loop().run_in_executor(threads, partial(work, *args, **kwargs)))


async def finish(running: asyncio.Future[T]) -> T:
    """The result of what runs in a thread, also where the request is cancelled: that goes on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()


@asynccontextmanager
async def _patience(least_rate: int) -> AsyncIterator[asyncio.Timeout]:
    """How long the sender of a part is waited for; a sender that is too slow or gone gets its problem."""
    try:
        async with asyncio.timeout(GRACE if least_rate else SILENCE) as timeout:
            yield timeout
    except TimeoutError:
        raise Refusal(
            Code.TOO_SLOW,
            f"Fewer than {least_rate} bytes a second arrived, or none for {SILENCE:g} s; what came is kept, go on from the "
            "offset.",
        ) from None
    except ClientDisconnect:
        raise Refusal(Code.UPLOAD_INCOMPLETE, "The connection was cut; what came is kept.") from None


async def nothing(request: Request, least_rate: int) -> None:
    """Wait for the end of a body that must be empty.

    Raises:
        Refusal: TOO_LARGE, TOO_SLOW, UPLOAD_INCOMPLETE.
    """
    async with _patience(least_rate):
        async for chunk in request.stream():
            if chunk:
                raise Refusal(Code.TOO_LARGE, "All bytes that were announced have arrived; commit the upload.")


async def stream(request: Request, file: BinaryIO, room: int, least_rate: int) -> bytes:
    """Write the body to the file; its SHA-256. Where it ends early, what came is written all the same.

    Raises:
        Refusal: TOO_LARGE for more than `room` bytes, TOO_SLOW, UPLOAD_INCOMPLETE.
    """
    clock = asyncio.get_running_loop().time
    started, received, sink = clock(), 0, Sink(file)
    try:
        async with _patience(least_rate) as patience:
            async for chunk in request.stream():
                received += len(chunk)
                if received > room:
                    raise Refusal(
                        Code.TOO_LARGE,
                        f"The part exceeds {room} bytes: parts hold at most {PART_LIMIT}, and no more than announced.",
                    )
                patience.reschedule(None)  # the time that our own disk takes is not the sender's
                began = clock()
                await sink.take(chunk)
                started += clock() - began
                at_least_rate = started + GRACE + received / least_rate if least_rate else math.inf
                patience.reschedule(min(at_least_rate, clock() + SILENCE))
    finally:
        await sink.drain()
    return sink.sha256.digest()
