"""Idle agents long-polling a coordinator: its memory and CPU, and the latency of its status call beside them.

The agents are sockets in another process than the coordinator; each polls with `wait`, reads the answer, polls again. They arrive
over `--ramp` seconds and wait through one `--wait` before anything is measured. Their keys and declarations are written straight
into the database: how fast they enroll is not measured here.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil
from sqlalchemy import URL

from benchmarks.lib.load.idle_sockets import agents
from demo.cluster import Cluster, cluster
from flexlora_server.database.queries import clients
from flexlora_server.database.schema import ApiKey, Client, Participation
from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from tests.support.databases import create_database, postgres_cluster, postgres_programs

RUN = "idle"
GAP = 0.25  # seconds between two status calls
SPEC = {
    "name": RUN,
    "model": {"id": "none"},
    "modules": [{"name": "layer", "out_features": 64, "in_features": 64}],
    "ranks": [4, 8],
    "rounds": 1,
    "min_clients": 100_000,  # never begins: everyone stays idle
}


@dataclass(frozen=True)
class Asked:
    """What to measure."""

    agents: int
    wait: int
    seconds: float
    ramp: float
    database: str


def enroll(store: Store, count: int) -> list[str]:
    """Enroll and declare `count` participants; their keys."""
    now, keys = datetime.now(UTC), [clients.new_secret(clients.CLIENT_PREFIX) for _ in range(count)]
    with store.transaction() as tx:
        ids = [f"{number:016x}" for number in range(count)]
        tx.session.add_all(Client(id=one, name=f"agent-{one}", enrolled_at=now) for one in ids)
        tx.session.flush()
        for client, (public, secret) in zip(ids, keys, strict=True):
            digest = clients.sha256(secret)
            tx.session.add(ApiKey(id=public, client_id=client, sha256=digest, created_at=now, used_at=now))
            told = {"rank": 8, "examples": 100}
            tx.session.add(Participation(run=RUN, client_id=client, declaration=told, declared_at=now))
    return [secret for _, secret in keys]


def status_latency(http: httpx2.Client, until: float) -> list[float]:
    """Seconds of each `GET /v1/runs/{run}`, one call after the other."""
    seconds = []
    while time.monotonic() < until:
        started = time.perf_counter()
        http.get(f"/v1/runs/{RUN}").raise_for_status()
        seconds.append(time.perf_counter() - started)
        time.sleep(GAP)
    return seconds


@contextmanager
def waiting(made: Cluster, keys: list[str], asked: Asked) -> Iterator[Connection]:
    """The agents in a process of their own, until told to end; the connection answers with their tally."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=agents, args=(made.url, RUN, keys, asked.wait, asked.ramp, there)
    )
    process.start()
    try:
        yield here
    finally:
        process.join()


def busy(process: psutil.Process, during: Callable[[], None]) -> float:
    """The share of one core that the process takes meanwhile."""
    before, started = process.cpu_times(), time.perf_counter()
    during()
    after, wall = process.cpu_times(), time.perf_counter() - started
    return float(after.user + after.system - before.user - before.system) / wall


def watch(made: Cluster, asked: Asked, keys: list[str]) -> dict[str, object]:
    """The coordinator while all agents wait; its figures."""
    assert made.process is not None
    server = psutil.Process(made.process.pid)
    before = server.memory_info().rss
    headers = {"Authorization": f"Bearer {made.operator_key}"}
    with waiting(made, keys, asked) as agents_, httpx2.Client(base_url=made.url, timeout=60, headers=headers) as http:
        time.sleep(asked.ramp + asked.wait)
        agents_.send("count")
        agents_.recv()
        idle = busy(server, lambda: time.sleep(asked.seconds))
        latencies: list[float] = []
        calling = busy(server, lambda: latencies.extend(status_latency(http, time.monotonic() + asked.seconds)))
        after = server.memory_info().rss
        agents_.send("end")
        polls, unexpected, open_ = agents_.recv()
    ordered = sorted(latencies)
    return {
        "agents_connected": open_,
        "measured_seconds": 2 * asked.seconds,
        "polls_answered": polls,
        "unexpected_answers": unexpected,
        "rss_before_mib": round(before / 2**20),
        "rss_mib": round(after / 2**20),
        "kib_per_agent": round((after - before) / 1024 / asked.agents, 1),
        "cpu_share_of_one_core": round(idle, 3),
        "cpu_share_with_status_calls": round(calling, 3),
        "status_calls": len(ordered),
        "status_p50_ms": round(1000 * statistics.median(ordered), 1),
        "status_p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
        "load_average": round(psutil.getloadavg()[0], 1),
    }


def measure(asked: Asked, folder: Path, url: URL | None) -> dict[str, object]:
    """One measurement on a coordinator of its own."""
    settings = {} if url is None else {"FLEXLORA_DATABASE_URL": url.render_as_string(hide_password=False)}
    with cluster(folder, FLEXLORA_WORKERS="1", **settings) as made:
        made.create_run(SPEC)
        store = Store(url or Settings(data_dir=folder / "coordinator").url)
        keys = enroll(store, asked.agents)
        store.close()
        return {"database": asked.database, "agents": asked.agents, "wait_seconds": asked.wait} | watch(
            made, asked, keys
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--wait", type=int, default=55, help="seconds of each long poll")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of each measurement: without, then with status calls"
    )
    parser.add_argument("--ramp", type=float, default=30.0, help="seconds over which the agents arrive")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    asked = Asked(**vars(parser.parse_args()))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    programs = postgres_programs()
    if asked.database == "postgresql" and programs is None:
        parser.error("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = postgres_cluster(programs) if asked.database == "postgresql" and programs else nullcontext(None)
    with TemporaryDirectory() as folder, server as socket:
        url = None if socket is None else create_database(socket, "idle")
        print(json.dumps(measure(asked, Path(folder), url)))


if __name__ == "__main__":
    main()
