"""Starts a coordinator whose rounds wait for the uploads of many clients, by calls of the protocol alone."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.load.payloads import RANK, modules
from benchmarks.lib.load.transfers import Round
from benchmarks.lib.load.wire import connected
from demo.cluster import Cluster, cluster

TIMEOUT_S = 120.0  # seconds for a round to begin, and for a run's first adapter
AT_ONCE = 16  # clients that enroll side by side


@dataclass(frozen=True)
class Collecting:
    """The coordinator, and the keys of its clients."""

    made: Cluster
    keys: tuple[str, ...]

    @property
    def pid(self) -> int:
        """Of the serving process."""
        assert self.made.process is not None
        return self.made.process.pid

    def round(self, number: int) -> Round:
        """Declare every client in the `number`-th run; returns when all are assigned in its first round."""
        to = Round(self.made.url, f"run-{number}", self.keys)
        asyncio.run(_assigned(to))
        return to

    def faults(self) -> dict[str, int]:
        """What the coordinator's log has of refused locks and of errors."""
        log = (self.made.folder / "coordinator.log").read_text(errors="replace")
        return {"locked": log.count("database is locked"), "logged_errors": log.count(" ERROR ")}


@contextmanager
def collecting(folder: Path, clients: int, mib: int, runs: int, **settings: str) -> Iterator[Collecting]:
    """A coordinator with `runs` runs for updates of `mib` MiB and its clients enrolled; nothing aggregates their updates."""
    with cluster(folder, FLEXLORA_WORKERS="0", **settings) as made:
        asyncio.run(_started(made, clients, mib, runs))
        with _worker(made):
            keys = asyncio.run(_enrolled(made, clients))
            asyncio.run(_published(made, runs))
        yield Collecting(made, tuple(keys))


async def _started(made: Cluster, clients: int, mib: int, runs: int) -> None:
    """Define the runs and start them."""
    async with connected(made.url, made.operator_key) as link:
        for number in range(runs):
            spec = {
                "name": f"run-{number}",
                "model": {"id": "none"},
                "modules": modules(mib),
                "ranks": [RANK],
                "rounds": 1,
                "min_clients": clients,
                "gather_timeout": 0.0,
                "round_timeout": 86_400.0,
            }
            await link.say(201, "POST", "/v1/runs", spec)
            await link.call(200, "POST", f"/v1/runs/run-{number}/start")


@contextmanager
def _worker(made: Cluster) -> Iterator[None]:
    """A worker for the block alone: it publishes the first adapters, and is not there to compete later."""
    command = [str(Path(sys.executable).with_name("flexlora-server")), "worker"]
    with (made.folder / "worker.log").open("a") as log:
        process = subprocess.Popen(command, env=made.server_environment(), stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def _enrolled(made: Cluster, clients: int) -> list[str]:
    """The keys of so many new clients."""
    left = iter(range(clients))
    keys = []

    async def enroll() -> None:
        async with connected(made.url, made.operator_key) as link:
            for number in left:
                token = (await link.say(201, "POST", "/v1/enrolment-tokens", {})).json()["token"]
                told = {"token": token, "name": f"client-{number}"}
                keys.append((await link.say(201, "POST", "/v1/clients", told)).json()["api_key"])

    await asyncio.gather(*(enroll() for _ in range(AT_ONCE)))
    return keys


async def _published(made: Cluster, runs: int) -> None:
    """Return when every run has its round 0."""
    async with connected(made.url, made.operator_key) as link:
        until = time.monotonic() + TIMEOUT_S
        for number in range(runs):
            while (await link.call(200, "GET", f"/v1/runs/run-{number}")).json()["status"]["current_round"] != 1:
                if time.monotonic() > until:
                    said = (made.folder / "worker.log").read_text()[-300:]
                    raise RuntimeError(
                        f"no first adapter of run-{number} after {TIMEOUT_S:g} s; the worker says: {said}"
                    )
                await asyncio.sleep(0.1)


async def _assigned(to: Round) -> None:
    """Declare and take the task, every client on a connection of its own."""

    async def take(key: str) -> None:
        async with connected(to.url, key) as link:
            await link.say(200, "PUT", f"/v1/runs/{to.run}/declaration", {"rank": RANK, "examples": 10})
            await link.call(200, "GET", f"/v1/runs/{to.run}/task?wait=60")

    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*map(take, to.keys))
