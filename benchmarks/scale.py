"""The profile `scale` with two coordinators and with one: uploads by several clients at once, through the proxy with TLS.

Needs the profile running, and the engine's `docker` to stop and start one of its coordinators. Measurements come in pairs,
one with both and one with a single coordinator, in changing order; the ratio is the median over the pairs.
"""

import argparse
import json
import ssl
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.lib.load.payloads import RANK, Update, modules, payload

TIMEOUT_S = 120.0  # seconds for a round to begin, and for a container to be healthy


@dataclass(frozen=True)
class Place:
    """Where the proxy is, whom it shows itself to, and who sends."""

    url: str
    trust: ssl.SSLContext
    operator_key: str
    keys: Sequence[str] = ()

    def client(self, key: str | None = None) -> httpx2.Client:
        """A connection of its own for one sender; the operator's without a key."""
        headers = {"Authorization": f"Bearer {key or self.operator_key}"}
        return httpx2.Client(base_url=self.url, headers=headers, verify=self.trust, timeout=TIMEOUT_S)


def main() -> None:
    """Measure and print."""
    asked = _options()
    place = Place(asked.url, ssl.create_default_context(cafile=asked.ca_file), asked.key_file.read_text().strip())
    stamp = f"scale-{time.time_ns():x}"
    place = Place(place.url, place.trust, place.operator_key, _enrolled(place, asked.clients))
    rates: dict[str, list[float]] = {"two": [], "one": []}
    for pair in range(asked.pairs):
        for which in ("two", "one") if pair % 2 else ("one", "two"):
            _bring(asked.container, running=which == "two")
            rates[which].append(_measure(place, f"{stamp}-{pair}-{which}", asked.mib))
            print(f"pair {pair + 1}, {which}: {rates[which][-1]:.1f} MiB/s", flush=True)
    _bring(asked.container, running=True)
    ratios = [two / one for two, one in zip(rates["two"], rates["one"], strict=True)]
    medians = {which: statistics.median(found) for which, found in rates.items()}
    print(json.dumps({"mib_per_s": medians, "ratio": statistics.median(ratios), "ratios": ratios, "rates": rates}))


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="scripts/bench scale", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("container", help="of the coordinator that is stopped and started")
    made.add_argument("--url", default="https://127.0.0.1:8443", help="of the proxy")
    made.add_argument("--key-file", type=Path, default=Path("docker/secrets/flexlora_operator_key"))
    made.add_argument("--ca-file", type=Path, default=Path("docker/secrets/flexlora_ca.pem"))
    made.add_argument("--clients", type=int, default=8, help="that send at once")
    made.add_argument("--mib", type=int, default=16, help="of each update")
    made.add_argument("--pairs", type=int, default=5, help="of measurements")
    return made.parse_args()


def _bring(container: str, *, running: bool) -> None:
    """Start the container and wait until it is healthy, or stop it."""
    subprocess.run(["docker", "start" if running else "stop", container], check=True, stdout=subprocess.DEVNULL)
    ask = ["docker", "inspect", "--format", "{{.State.Health.Status}}", container]

    def healthy() -> bool:
        return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip() == "healthy"

    if running:
        _until(healthy, f"{container} is healthy")


def _enrolled(place: Place, count: int) -> list[str]:
    """The keys of so many new clients."""
    with place.client() as operator:
        tokens = [_json(operator.post("/v1/enrolment-tokens", json={}))["token"] for _ in range(count)]
        told = [{"token": token, "name": f"scale-{at}"} for at, token in enumerate(tokens)]
        return [_json(operator.post("/v1/clients", json=one))["api_key"] for one in told]


def _measure(place: Place, run: str, mib: int) -> float:
    """MiB a second of all clients' updates, from the first announcement to the last receipt."""
    given = [payload(mib).of(at) for at in range(len(place.keys))]
    with place.client() as operator, ThreadPoolExecutor(len(given)) as pool:
        _begin(operator, run, mib, len(given))
        links = [place.client(key) for key in place.keys]
        list(pool.map(lambda link: _take(link, run), links))
        started = time.perf_counter()
        list(pool.map(lambda link, update: _send(link, update, run), links, given))
        seconds = time.perf_counter() - started
        for link in links:
            link.close()
        _json(operator.post(f"/v1/runs/{run}/cancel"))
    return sum(update.size for update in given) / 2**20 / seconds


def _begin(operator: httpx2.Client, run: str, mib: int, clients: int) -> None:
    """Define and start a run whose round waits for all clients."""
    rules = {"ranks": [RANK], "rounds": 1, "min_clients": clients, "min_updates": clients}
    _json(operator.post("/v1/runs", json={"name": run, "model": {"id": "none"}, "modules": modules(mib), **rules}))
    _json(operator.post(f"/v1/runs/{run}/start"))
    status = f"/v1/runs/{run}"
    _until(lambda: _json(operator.get(status))["status"]["current_round"] == 1, f"{run} has its first adapter")


def _take(link: httpx2.Client, run: str) -> None:
    _json(link.put(f"/v1/runs/{run}/declaration", json={"rank": RANK, "examples": 10}))
    _json(link.get(f"/v1/runs/{run}/task?wait=60"))


def _send(link: httpx2.Client, update: Update, run: str) -> None:
    """One update by the protocol, from the announcement to the receipt."""
    told = {"rank": RANK, "alpha": RANK, "examples": 10, "size": update.size, "sha256": update.sha256}
    place = f"/v1/uploads/{_json(link.post(f'/v1/runs/{run}/rounds/1/uploads', json=told))['id']}"
    for part in update.parts:
        answer = link.patch(place, headers=update.headers(part), content=b"".join(part.pieces))
        if answer.status_code != 204:
            raise SystemExit(f"PATCH {place}: {answer.status_code} {answer.text}")
    assert _json(link.put(f"{place}/commit"))["sha256"] == update.sha256


def _json(answer: httpx2.Response) -> Any:
    if not answer.is_success:
        raise SystemExit(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    return answer.json()


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"after {TIMEOUT_S:g} s it is not so that {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
