"""Generates the load of `coordinator`: many clients at once from a separate process, and the raw rate to compare with.

Each function is one measurement, run in that process. What is sent is made and hashed before the clock starts.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.load.payloads import RANK, Update, payload
from benchmarks.lib.load.wire import Connection, Unexpected, connected

MIB = 2**20
TIMEOUT_S = 300.0  # seconds that a client waits in all; then it is an error


@dataclass(frozen=True)
class Passed:
    """What went through: bytes and seconds, the share of one core that the clients took, and what went wrong."""

    size: int
    seconds: float
    busy: float
    errors: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """MiB a second."""
        return self.size / MIB / self.seconds


@dataclass(frozen=True)
class Round:
    """A collecting round of a coordinator, and the keys of the clients assigned in it."""

    url: str
    run: str
    keys: tuple[str, ...]


def raw(folder: Path, mib: int, files: int) -> Passed:
    """Hash, write and sync so many files, one after the other: what this machine has to give."""
    given = [payload(mib).of(client) for client in range(files)]
    started, cpu = time.perf_counter(), time.process_time()
    for number, update in enumerate(given):
        hashed = hashlib.sha256()
        with (folder / str(number)).open("wb", buffering=0) as file:
            for part in update.parts:
                for piece in part.pieces:
                    hashed.update(piece)
                    file.write(piece)
            os.fsync(file.fileno())
        assert hashed.hexdigest() == update.sha256
    return _passed(sum(update.size for update in given), started, cpu)


def upload(to: Round, mib: int) -> Passed:
    """Every client sends its update by the protocol, from the announcement to the receipt."""
    given = [payload(mib).of(client) for client in range(len(to.keys))]

    async def send(client: int, link: Connection) -> int:
        return await _send(link, to.run, given[client])

    return asyncio.run(_all(to.url, to.keys, send))


async def _send(link: Connection, run: str, update: Update) -> int:
    told = {"rank": RANK, "alpha": RANK, "examples": 10, "size": update.size, "sha256": update.sha256}
    place = (await link.say(201, "POST", f"/v1/runs/{run}/rounds/1/uploads", told)).headers["location"]
    for part in update.parts:
        await link.call(204, "PATCH", place, update.headers(part), part.pieces)
    receipt = (await link.call(200, "PUT", f"{place}/commit")).json()
    if receipt["sha256"] != update.sha256:
        raise Unexpected(f"the receipt of {place} is for {receipt['sha256']}, {update.sha256} was sent")
    return update.size


def upload_plainly(url: str, mib: int, clients: int, query: str) -> Passed:
    """Every client sends its update to the naive server in one request."""
    given = [payload(mib).of(client) for client in range(clients)]

    async def send(client: int, link: Connection) -> int:
        await link.call(204, "PUT", f"/files/{client}?{query}", {}, given[client].pieces)
        return given[client].size

    return asyncio.run(_all(url, [""] * clients, send))


def download(url: str, path: str, keys: Sequence[str]) -> Passed:
    """Every client reads the same file once."""

    async def read(client: int, link: Connection) -> int:
        return await link.download(path)

    return asyncio.run(_all(url, keys, read))


async def _all(url: str, keys: Sequence[str], work: Callable[[int, Connection], Awaitable[int]]) -> Passed:
    """All clients at once, each on a connection of its own."""
    errors: list[str] = []

    async def one(client: int) -> int:
        try:
            async with asyncio.timeout(TIMEOUT_S), connected(url, keys[client]) as link:
                return await work(client, link)
        except (OSError, Unexpected) as error:
            errors.append(str(error) or repr(error))
            return 0

    started, cpu = time.perf_counter(), time.process_time()
    sizes = await asyncio.gather(*map(one, range(len(keys))))
    return _passed(sum(sizes), started, cpu, errors)


def _passed(size: int, started: float, cpu: float, errors: Sequence[str] = ()) -> Passed:
    seconds = time.perf_counter() - started
    return Passed(size, seconds, (time.process_time() - cpu) / seconds, tuple(errors))
