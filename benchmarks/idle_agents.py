"""Idle agents long-polling a coordinator: its memory and CPU, and the latency of its status call beside them.

The agents are sockets in another process than the coordinator; each polls with `wait`, reads the answer, polls again.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx2
import psutil

from demo.cluster import Cluster, cluster

RUN = "idle"
SPEC = {
    "name": RUN,
    "model": {"id": "none"},
    "modules": [{"name": "layer", "out_features": 64, "in_features": 64}],
    "ranks": [4, 8],
    "rounds": 1,
    "min_clients": 100_000,  # never begins: everyone stays idle
}


@dataclass
class Tally:
    """What the agents saw."""

    polls: int = 0
    unexpected: int = 0


def enrol(http: httpx2.Client, operator: dict[str, str], number: int) -> str:
    """Enrol and declare one participant; its key."""
    token = http.post("/v1/enrolment-tokens", json={}, headers=operator).json()["token"]
    key: str = http.post("/v1/clients", json={"token": token, "name": f"agent-{number}"}).json()["api_key"]
    told = {"rank": 4 if number % 2 else 8, "examples": 100}
    answer = http.put(f"/v1/runs/{RUN}/declaration", json=told, headers={"Authorization": f"Bearer {key}"})
    answer.raise_for_status()
    return key


async def idle(host: str, port: int, key: str, wait: int, until: float, tally: Tally) -> None:
    """One agent on one connection, polling until the measurement ends."""
    reader, writer = await asyncio.open_connection(host, port)
    head = (
        f"GET /v1/runs/{RUN}/task?wait={wait} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    )
    try:
        while (left := until - time.monotonic()) > 0:
            writer.write(head)
            async with asyncio.timeout(left):
                answer = await reader.readuntil(b"\r\n\r\n")
            tally.polls += 1
            tally.unexpected += not answer.startswith(b"HTTP/1.1 204")
    except TimeoutError:
        pass
    finally:
        writer.close()


async def status_latency(url: str, operator: dict[str, str], until: float, gap: float) -> list[float]:
    """Seconds of each `GET /v1/runs/{run}`, one call after the other."""
    seconds = []
    async with httpx2.AsyncClient(base_url=url, headers=operator, timeout=60) as http:
        while time.monotonic() < until:
            started = time.perf_counter()
            (await http.get(f"/v1/runs/{RUN}")).raise_for_status()
            seconds.append(time.perf_counter() - started)
            await asyncio.sleep(gap)
    return seconds


async def load(made: Cluster, keys: list[str], wait: int, seconds: float) -> tuple[Tally, list[float]]:
    """All agents at once, arriving over a few seconds, and the status calls beside them."""
    parts = urlsplit(made.url)
    assert parts.hostname is not None
    assert parts.port is not None
    until, tally = time.monotonic() + seconds, Tally()
    waiting = []
    for number, key in enumerate(keys):
        waiting.append(asyncio.create_task(idle(parts.hostname, parts.port, key, wait, until, tally)))
        if number % 100 == 99:
            await asyncio.sleep(0.1)
    latencies = await status_latency(made.url, {"Authorization": f"Bearer {made.operator_key}"}, until, 0.05)
    await asyncio.gather(*waiting)
    return tally, latencies


def measure(agents: int, wait: int, seconds: float, folder: Path) -> dict[str, object]:
    """One measurement; its figures."""
    with cluster(folder) as made:
        made.create_run(SPEC)
        operator = {"Authorization": f"Bearer {made.operator_key}"}
        assert made.process is not None
        server = psutil.Process(made.process.pid)
        with httpx2.Client(base_url=made.url, timeout=60) as http:
            keys = [enrol(http, operator, number) for number in range(agents)]
        before = server.memory_info().rss
        cpu, started = server.cpu_times(), time.perf_counter()
        tally, latencies = asyncio.run(load(made, keys, wait, seconds))
        spent, wall = server.cpu_times(), time.perf_counter() - started
        after = server.memory_info().rss
    busy = spent.user + spent.system - cpu.user - cpu.system
    ordered = sorted(latencies)
    return {
        "agents": agents,
        "wait_seconds": wait,
        "measured_seconds": round(wall, 1),
        "polls_answered": tally.polls,
        "unexpected_answers": tally.unexpected,
        "rss_before_mib": round(before / 2**20),
        "rss_mib": round(after / 2**20),
        "kib_per_agent": round((after - before) / 1024 / agents, 1),
        "cpu_share_of_one_core": round(busy / wall, 3),
        "status_calls": len(ordered),
        "status_p50_ms": round(1000 * statistics.median(ordered), 1),
        "status_p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--wait", type=int, default=30, help="seconds of each long poll")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of the measurement")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(json.dumps(measure(asked.agents, asked.wait, asked.seconds, Path(folder))))


if __name__ == "__main__":
    main()
