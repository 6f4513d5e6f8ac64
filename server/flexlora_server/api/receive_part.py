"""Receives one part of an upload: streams it to the disk and hashes it on the way, in bounded memory."""

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

MAX_PART_BYTES = 8 << 20
BUFFER_BYTES = 1 << 18  # held before they are written
RATE_GRACE_S = 10.0  # before the minimum rate is enforced
SILENCE_TIMEOUT_S = 30.0  # without a byte: the sender is gone, or waits to go on by another connection
P = ParamSpec("P")
T = TypeVar("T")


class PartWriter:
    """Writes and hashes in a thread while the next bytes are received; `sha256` is complete once `drain` has returned."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file, self._buffer, self._size = file, list[bytes](), 0
        self._pending: asyncio.Future[None] | None = None
        self._failed = False

    async def write(self, chunk: bytes) -> None:
        """Buffer some more bytes, and write a full buffer."""
        self._buffer.append(chunk)  # never joined: this thread, which serves everybody, copies nothing
        self._size += max(len(chunk), 1024)  # many tiny ones take more room than their bytes
        if self._size >= BUFFER_BYTES:
            await self._wait_for_write()
            self._pending = asyncio.get_running_loop().run_in_executor(None, self._write, self._take_buffer())

    async def drain(self) -> None:
        """Return when all is written; a cancellation is raised after that."""
        await self._wait_for_write()
        remaining = self._take_buffer()
        if remaining and not self._failed:  # what follows bytes that the disk did not take is of no use
            await run_to_completion(None, self._write, remaining)

    async def _wait_for_write(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            await wait_until_done(pending)

    def _take_buffer(self) -> list[bytes]:
        """Empty the buffer; the caller writes what it held."""
        chunks, self._buffer, self._size = self._buffer, [], 0
        return chunks

    def _write(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            try:
                self._file.write(chunk)
            except OSError:
                self._failed = True
                raise
            self.sha256.update(chunk)


async def run_to_completion(threads: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread and wait until it is done; a cancellation is raised after that.

    threads: None for the event loop's default executor.
    """
    return await wait_until_done(asyncio.get_running_loop().run_in_executor(threads, partial(work, *args, **kwargs)))


async def wait_until_done(running: asyncio.Future[T]) -> T:
    """The result of a future; a cancellation is raised only after the future is done."""
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
async def _sender_timeout(min_rate: int) -> AsyncIterator[asyncio.Timeout]:
    """A timeout for the sender of a part.

    Raises:
        Refusal: TOO_SLOW, or UPLOAD_INCOMPLETE where the connection was cut.
    """
    try:
        async with asyncio.timeout(RATE_GRACE_S if min_rate else SILENCE_TIMEOUT_S) as timeout:
            yield timeout
    except TimeoutError:
        raise Refusal(
            Code.TOO_SLOW,
            f"Fewer than {min_rate} bytes a second arrived, or none for {SILENCE_TIMEOUT_S:g} s; what came is kept, "
            "go on from the offset.",
        ) from None
    except ClientDisconnect:
        raise Refusal(Code.UPLOAD_INCOMPLETE, "The connection was cut; what came is kept.") from None


async def expect_empty_body(request: Request, min_rate: int) -> None:
    """Read a body that must be empty.

    Raises:
        Refusal: TOO_LARGE, TOO_SLOW, UPLOAD_INCOMPLETE.
    """
    async with _sender_timeout(min_rate):
        async for chunk in request.stream():
            if chunk:
                raise Refusal(Code.TOO_LARGE, "All bytes that were announced have arrived; commit the upload.")


async def receive_body(request: Request, file: BinaryIO, max_bytes: int, min_rate: int) -> bytes:
    """Write the body to the file; its SHA-256. Where the body ends early, the bytes that arrived are written too.

    Raises:
        Refusal: TOO_LARGE for more than `room` bytes, TOO_SLOW, UPLOAD_INCOMPLETE.
    """
    clock = asyncio.get_running_loop().time
    started, received, writer = clock(), 0, PartWriter(file)
    try:
        async with _sender_timeout(min_rate) as timeout:
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_bytes:
                    raise Refusal(
                        Code.TOO_LARGE,
                        f"The part exceeds {max_bytes} bytes: parts hold at most {MAX_PART_BYTES}, and no more than announced.",
                    )
                timeout.reschedule(None)  # the time that our own disk takes is not the sender's
                began = clock()
                await writer.write(chunk)
                started += clock() - began
                rate_deadline = started + RATE_GRACE_S + received / min_rate if min_rate else math.inf
                timeout.reschedule(min(rate_deadline, clock() + SILENCE_TIMEOUT_S))
    finally:
        await writer.drain()
    return writer.sha256.digest()
