"""State changes a second in `coordinator`: declarations, and uploads announced and cancelled, by several clients at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.lib.load.payloads import RANK, payload
from benchmarks.lib.load.transfers import Round
from benchmarks.lib.load.wire import Connection, Unexpected, connected

Step = Callable[[Connection, int], Awaitable[int]]  # makes the `number`-th changes; how many these were


@dataclass(frozen=True)
class Changes:
    """How many state changes were made in how many seconds, and what went wrong."""

    count: int
    seconds: float
    errors: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Changes a second."""
        return self.count / self.seconds


def declare(to: Round, seconds: float) -> Changes:
    """Every client declares another number of examples, again and again."""

    async def step(link: Connection, number: int) -> int:
        told = {"rank": RANK, "examples": 11 + number}
        await link.say(200, "PUT", f"/v1/runs/{to.run}/declaration", told)
        return 1

    return asyncio.run(_repeated(to, seconds, step))


def announce(to: Round, mib: int, seconds: float) -> Changes:
    """Every client announces an upload and cancels it, again and again: two changes."""
    update = payload(mib).of(0)

    async def step(link: Connection, number: int) -> int:
        told = {"rank": RANK, "alpha": RANK, "examples": 1, "size": update.size, "sha256": update.sha256}
        answer = await link.say(201, "POST", f"/v1/runs/{to.run}/rounds/1/uploads", told)
        await link.call(204, "DELETE", answer.headers["location"])
        return 2

    return asyncio.run(_repeated(to, seconds, step))


async def _repeated(to: Round, seconds: float, step: Step) -> Changes:
    started = time.perf_counter()
    errors: list[str] = []

    async def client(key: str) -> int:
        count, number = 0, 0
        try:
            async with connected(to.url, key) as link:
                while time.perf_counter() - started < seconds:
                    count += await step(link, number)
                    number += 1
        except (OSError, Unexpected) as error:
            errors.append(str(error) or repr(error))
        return count

    count = sum(await asyncio.gather(*map(client, to.keys)))
    return Changes(count, time.perf_counter() - started, tuple(errors))
