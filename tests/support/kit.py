"""Test kit: a real coordinator on a real socket, participants that speak the protocol, adapter files."""

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from safetensors.torch import save
from starlette.routing import BaseRoute
from torch import Generator, Tensor, float32, randn
from torch import dtype as Dtype

from flexlora_server.app import create_app
from flexlora_server.database.queries import uploads
from flexlora_server.database.transactions import Store
from flexlora_server.long_polling import poller, waiting_room
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, open_blobs
from flexlora_server.worker.garbage_collector import collect_garbage
from flexlora_server.worker.worker import Worker
from flexlora_shared.digests import digest_field
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import module_ranks
from tests.support.databases import migrated_sqlite

# a deadline that the test's clock has passed is seen soon: tests ask again and again until it is
waiting_room.POLL_EVERY_S = poller.RECHECK_EVERY_S = 0.1
OPERATOR_KEY = "operator-key-of-the-tests"
PART = {"Content-Type": "application/partial-upload"}


def part(data: bytes, offset: int, last: bool = False) -> dict[str, str]:
    """The headers of a part of these bytes."""
    digest = digest_field(hashlib.sha256(data).digest())
    return PART | {"Upload-Offset": str(offset), "Upload-Complete": "?1" if last else "?0", "Content-Digest": digest}


class Clock:
    """The coordinator's time, moved by the test; so late that no agent here sees one of its deadlines pass."""

    def __init__(self) -> None:
        self.now = 4_000_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def spec(name: str = "run", **changes: Any) -> dict[str, Any]:
    """A small run of two modules of different shapes."""
    return {
        "name": name,
        "model": {"id": "tiny"},
        "modules": [
            {"name": "layers.0.q_proj", "out_features": 20, "in_features": 24},
            {"name": "layers.0.up_proj", "out_features": 32, "in_features": 24},
        ],
        "ranks": [2, 4, 8],
        "scaling": {"alpha_per_rank": 2.0},
        "rounds": 2,
        "gather_timeout": 0.0,
        "round_timeout": 100.0,
        "weighting": "examples",  # neither bounded nor filtered, so that results follow from the updates alone
        "robust": [],
        **changes,
    }


def tensors(run: RunSpec, rank: int, pattern: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of exactly the shapes an upload of these ranks must have, float32."""
    generator = Generator().manual_seed(seed)
    ranks = module_ranks(run.modules, rank, pattern or {})
    shapes = adapter_shapes(run.modules, run.extra, ranks)
    return {key: randn(*shape, generator=generator) for key, shape in shapes.items()}


def encode(named: Mapping[str, Tensor], dtype: Dtype = float32) -> bytes:
    """The tensors as a safetensors file in `dtype`."""
    return save({key: tensor.to(dtype).contiguous() for key, tensor in named.items()})


@dataclass
class Api:
    """Calls with one key. `expect` fails the test with the whole answer where the status is another."""

    http: httpx2.Client
    key: str | None = None

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = dict(options.pop("headers", {}))
        if self.key is not None:
            headers.setdefault("Authorization", f"Bearer {self.key}")
        return self.http.request(method, path, headers=headers, **options)

    def expect(self, status: int, method: str, path: str, **options: Any) -> Any:
        response = self.call(method, path, **options)
        assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text}"
        told = response.content and response.headers.get("content-type", "").endswith("json")
        return response.json() if told else response

    def problem(self, code: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The call must be refused with this problem code; its body."""
        response = self.call(method, path, **options)
        assert response.headers.get("content-type") == "application/problem+json", response.text
        body: dict[str, Any] = response.json()
        assert body["code"] == code, body
        assert body["status"] == response.status_code
        assert body["detail"].endswith("."), body
        return body


@dataclass
class Participant(Api):
    """An enrolled client that follows the protocol by hand."""

    client_id: str = ""
    declared_examples: int = field(init=False, default=10)

    def declare(
        self,
        run: str,
        rank: int,
        examples: int = 10,
        pattern: Mapping[str, int] | None = None,
        hold_rank: int | None = None,
    ) -> None:
        told = {"rank": rank, "examples": examples, "rank_pattern": dict(pattern or {})}
        told |= {} if hold_rank is None else {"hold_rank": hold_rank}
        self.declared_examples = examples
        self.expect(200, "PUT", f"/v1/runs/{run}/declaration", json=told)

    def task(self, run: str, wait: float = 30) -> dict[str, Any]:
        task: dict[str, Any] = self.expect(200, "GET", f"/v1/runs/{run}/task", params={"wait": wait})
        return task

    def announce(self, task: Mapping[str, Any], data: bytes, **told: Any) -> dict[str, Any]:
        rank = task["rank"]
        body = {
            "rank": rank,
            "rank_pattern": task["rank_pattern"],
            "alpha": 2.0 * rank,
            "trainable": task["trainable"],
            "examples": min(10, self.declared_examples),
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            **({"hold_rank": task["hold_rank"]} if "hold_rank" in task else {}),
            **told,
        }
        status: dict[str, Any] = self.expect(
            201, "POST", f"/v1/runs/{task['run']}/rounds/{task['round']}/uploads", json=body
        )
        return status

    def send(self, upload: str, data: bytes, offset: int = 0) -> None:
        self.expect(
            204, "PATCH", f"/v1/uploads/{upload}", headers=part(data[offset:], offset, True), content=data[offset:]
        )

    def commit(self, upload: str) -> dict[str, Any]:
        receipt: dict[str, Any] = self.expect(200, "PUT", f"/v1/uploads/{upload}/commit")
        return receipt

    def upload(self, task: Mapping[str, Any], data: bytes, **told: Any) -> dict[str, Any]:
        """Announce, send and commit; the receipt."""
        status = self.announce(task, data, **told)
        self.send(status["id"], data)
        return self.commit(status["id"])

    def download(self, task: Mapping[str, Any]) -> bytes:
        """The slice this task starts from."""
        content: bytes = self.call("GET", task["adapter"]["href"]).content
        assert hashlib.sha256(content).hexdigest() == task["adapter"]["sha256"]
        return content


def raw_request(url: str, head: str, key: str | None = None) -> socket.socket:
    """A connection that has sent the head of a request, for tests that send its body by hand, or cut it."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    line, *headers = head.splitlines()
    headers += ["Host: coordinator", *([f"Authorization: Bearer {key}"] if key else [])]
    connection.sendall("\r\n".join([f"{line} HTTP/1.1", *headers, "", ""]).encode("latin-1"))
    return connection


def part_head(upload: str, data: bytes, offset: int = 0) -> str:
    """The head of a PATCH that announces these bytes."""
    headers = part(data, offset) | {"Content-Length": str(len(data))}
    return "\n".join([f"PATCH /v1/uploads/{upload}", *(f"{name}: {value}" for name, value in headers.items())])


def raw_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the JSON body of the answer on a connection made by `raw_request`; closes it."""
    answer = HTTPResponse(connection)
    answer.begin()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body) if body else {}


@dataclass
class Served:
    """A running coordinator and its store; its worker steps only when the test says so."""

    url: str
    store: Store
    settings: Settings
    clock: Clock
    http: httpx2.Client
    operator: Api = field(init=False)
    blobs: BlobStore = field(init=False)
    worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        self.operator = Api(self.http, OPERATOR_KEY)
        self.blobs = open_blobs(self.settings)
        self.worker = Worker(self.store, self.blobs, self.settings)

    def enroll(self, name: str = "participant") -> Participant:
        token = self.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
        given = Api(self.http).expect(201, "POST", "/v1/clients", json={"token": token, "name": name})
        return Participant(self.http, given["api_key"], given["client_id"])

    def run(self, name: str = "run", **changes: Any) -> RunSpec:
        """A started run with round 0 published."""
        detail = self.operator.expect(201, "POST", "/v1/runs", json=spec(name, **changes))
        self.operator.expect(200, "POST", f"/v1/runs/{name}/start")
        self.work()
        return RunSpec.model_validate_json(json.dumps(detail["spec"]))

    def spec(self, name: str) -> RunSpec:
        detail = self.operator.expect(200, "GET", f"/v1/runs/{name}")
        return RunSpec.model_validate_json(json.dumps(detail["spec"]))

    def working(self, rank: int = 8, **changes: Any) -> tuple[Participant, dict[str, Any], bytes]:
        """A run with one participant in its first round: the participant, its task, and an update it may upload."""
        run = self.run(**changes)
        participant = self.enroll()
        participant.declare("run", rank)
        return participant, participant.task("run"), encode(tensors(run, rank))

    def check_storage(self) -> None:
        """After garbage collection, nothing lies in the data folder but whole blobs and the bytes of open uploads."""
        before = self.open_uploads()  # a poll may close a round at any time
        collect_garbage(self.store, self.blobs)
        assert set(self.blobs.uploads.upload_ids()) <= before | self.open_uploads()
        assert list((self.settings.data_dir / "temporary").iterdir()) == []
        for path in (self.settings.data_dir / "blobs").glob("*/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name

    def open_uploads(self) -> frozenset[str]:
        """The ids of uploads that may still become accepted."""
        with self.store.reading() as tx:
            return uploads.open_ids(tx)

    def work(self) -> int:
        """Let the worker aggregate whatever waits; how many rounds it took."""
        steps = 0
        while self.worker.step():
            steps += 1
        return steps

    def round(self, run: str, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.operator.expect(200, "GET", f"/v1/runs/{run}/rounds/{number}")
        return found


class Server(uvicorn.Server):
    """uvicorn, except that it ends as soon as it is told to: alone it looks ten times a second, and then waits a tenth."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told: Future[None] = Future()

    def end(self) -> None:
        """Called from another thread."""
        self._told.set_result(None)

    async def main_loop(self) -> None:
        ticks = asyncio.create_task(super().main_loop())
        await asyncio.wrap_future(self._told)
        ticks.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        ending = asyncio.create_task(self._wait_tasks_to_complete())
        with suppress(TimeoutError):
            await asyncio.wait_for(ending, self.config.timeout_graceful_shutdown)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


_routes: list[BaseRoute] = []  # of the first application


def application(settings: Settings, store: Store) -> FastAPI:
    """A coordinator with the routes of the first one: FastAPI prepares them at their first request, which takes long."""
    app = create_app(settings, store)
    if not _routes:
        _routes.extend(app.router.routes)
    app.router.routes[:] = _routes
    return app


@contextmanager
def served(store: Store, folder: Path, clock: Clock, **settings: Any) -> Iterator[Served]:
    """A coordinator on a real socket for the block."""
    values = {"data_dir": folder, "operator_key": OPERATOR_KEY, "aggregation_threads": 1, **settings}
    chosen = Settings.model_validate(values)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)  # connections wait here until uvicorn is up
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(uvicorn.Config(application(chosen, store), log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        # no TLS here: loading certificates would take as long as a few requests
        with httpx2.Client(base_url=url, timeout=60, verify=False) as http:
            yield Served(url, store, chosen, clock, http)
    finally:
        server.end()
        thread.join()
        listener.close()


@contextmanager
def served_on_sqlite(folder: Path) -> Iterator[Served]:
    """A coordinator with a database of its own in `folder`, for the block."""
    clock = Clock()
    store = Store(migrated_sqlite(folder), clock)
    with served(store, folder / "coordinator", clock) as running:
        yield running
    store.close()
