"""A coordinator, two agents and a scripted participant, for tests that kill processes at a moment they choose.

Every site begins as a copy of one folder in which everybody is enrolled, so client ids, data and seeds are the same: what is
published must be the same too, whatever was killed on the way.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
from sqlalchemy import URL, select

from demo.cluster import Agent, Cluster, cluster
from flexlora_client import credentials
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_server.database.queries import rounds, runs
from flexlora_server.database.schema import Adapter, Round, Table, Upload
from flexlora_server.database.transactions import Store
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import Api, Participant, encode, part, tensors
from tests.support.processes import Watched, gone, until, watching, worker_of
from tests.system.conftest import write_questions

RUN = "survivor"
AGENTS = {"small": 8, "middle": 32}  # ranks
HAND, HAND_RANK = "hand", 64
LEASE = 2.0  # seconds
SETTINGS = {"FLEXLORA_LEASE_SECONDS": str(LEASE), "FLEXLORA_AGGREGATION_THREADS": "1"}


def enroll_everybody(folder: Path, model: Path) -> Path:
    """A stopped coordinator's folder with three enrolled participants, and the agents' data."""
    with cluster(folder) as made:
        for name in (*AGENTS, HAND):
            made.enroll(name)
            write_questions(folder / name / "data.jsonl", name)
    (folder / "model").symlink_to(model)
    return folder


def copy_rows(source: URL, target: URL) -> None:
    """Everything in one database into another, empty one."""
    stores = Store(source), Store(target)
    with stores[0].reading() as found, stores[1].transaction() as made:
        for table in Table.metadata.sorted_tables:
            rows = [dict(row) for row in found.session.execute(select(table)).mappings()]
            if rows:
                made.session.execute(table.insert(), rows)
    for store in stores:
        store.close()


@dataclass
class Site:
    """A running coordinator with its database open beside it."""

    cluster: Cluster
    store: Store
    spec: RunSpec
    http: httpx2.Client

    @property
    def folder(self) -> Path:
        """Of the coordinator and the agents."""
        return self.cluster.folder

    @property
    def operator(self) -> Api:
        return Api(self.http, self.cluster.operator_key)

    @property
    def hand(self) -> Participant:
        """The participant that the test leads."""
        identity = credentials.load(self.folder / HAND)
        return Participant(self.http, identity.api_key, identity.client_id)

    def agent(self, name: str) -> Agent:
        """Start an agent."""
        given = ("--data", str(self.folder / name / "data.jsonl"), "--heldout-fraction", "0", "--threads", "1")
        return self.cluster.agent(name, RUN, "--rank", str(AGENTS[name]), *given)

    @contextmanager
    def agents(self) -> Iterator[list[Watched]]:
        """Both agents, started and declared."""
        with watching([self.agent(name) for name in AGENTS]) as watched:
            for one in watched:
                one.expect("declared")
            yield watched

    def start_run(self) -> None:
        self.operator.expect(200, "POST", f"/v1/runs/{RUN}/start")

    # the participant led by hand

    def declare(self) -> None:
        self.hand.declare(RUN, HAND_RANK)

    def task(self, number: int) -> dict[str, Any]:
        """The hand's task of this round."""
        return until(lambda: self._task(number), f"round {number} collects updates")

    def _task(self, number: int) -> dict[str, Any] | None:
        response = self.hand.call("GET", f"/v1/runs/{RUN}/task", params={"wait": 20})
        assert response.status_code in {200, 204}, response.text
        found: dict[str, Any] | None = response.json() if response.status_code == 200 else None
        assert found is None or found["round"] == number, found
        return found

    def update(self, number: int) -> bytes:
        """The hand's update of a round, the same in every site; small beside what the model's weights are."""
        made = tensors(self.spec, HAND_RANK, seed=number)
        return encode({key: 0.01 * tensor for key, tensor in made.items()})

    def send(self, upload: str, data: bytes, offset: int, end: int) -> None:
        """One part of an upload, never the last."""
        headers = part(data[offset:end], offset)
        self.hand.expect(204, "PATCH", f"/v1/uploads/{upload}", headers=headers, content=data[offset:end])

    def upload(self, task: Mapping[str, Any]) -> str:
        """Announce and send the hand's update, in parts; what remains is to commit it."""
        data = self.update(task["round"])
        upload: str = self.hand.announce(task, data)["id"]
        for offset in range(0, len(data), 4 << 20):
            self.send(upload, data, offset, offset + (4 << 20))
        return upload

    def take_part(self, number: int) -> None:
        """All the hand does in a round."""
        self.hand.commit(self.upload(self.task(number)))

    def wait_for_agents(self, number: int) -> None:
        """Return when the updates of both agents are accepted: the round waits for the hand alone."""
        until(lambda: self.accepted(number) == len(AGENTS), f"both agents' updates of round {number} are accepted")

    # the database, from outside

    def accepted(self, number: int) -> int:
        with self.store.reading() as tx:
            round_ = rounds.latest(tx, RUN, number)
            return rounds.count_uploads(tx, round_, "ACCEPTED")

    def round(self, number: int) -> Round:
        """The latest attempt's row."""
        with self.store.reading() as tx:
            return rounds.latest(tx, RUN, number)

    def upload_row(self, upload: str) -> Upload:
        with self.store.reading() as tx:
            return tx.session.get_one(Upload, upload)

    def adapters(self) -> dict[int, str]:
        """What was published: digests by round."""
        with self.store.reading() as tx:
            return {row.number: row.sha256 for row in tx.session.scalars(select(Adapter))}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock: nobody publishes meanwhile."""
        with self.store.transaction() as tx:
            runs.lock(tx, RUN)
            yield

    # the files, from outside

    def blobs(self) -> set[str]:
        return {path.name for path in (self.folder / "coordinator" / "blobs").glob("*/*")}

    def being_written(self) -> list[Path]:
        return list((self.folder / "coordinator" / "temporary").iterdir())

    # killing

    def suspend_aggregation(self, number: int) -> psutil.Process:
        """SIGSTOP the worker while it writes the result of round `number`."""

        def at_work() -> bool:
            return self.round(number).lease_until is not None and bool(self.being_written())

        worker = worker_of(self.cluster)
        until(at_work, f"the worker aggregates round {number}")
        worker.suspend()
        until(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker is stopped")
        assert self.round(number).state == "AGGREGATING"
        return worker

    def kill(self, worker: psutil.Process | None = None) -> None:
        """`kill -9` the coordinator; its worker, let run where it was suspended, ends by itself."""
        worker = worker or worker_of(self.cluster)
        self.cluster.kill()
        if not gone(worker):
            worker.resume()
        until(lambda: gone(worker), "the worker ends with its coordinator")

    def restart(self) -> None:
        """Serve again in the same folder, on the same port."""
        url = self.cluster.url
        self.cluster.start()
        assert self.cluster.url == url

    # the end

    def finish(self, agents: list[Watched]) -> dict[int, str]:
        """Wait until the agents have ended well; what was published, after a look at everything that is left."""
        assert [agent.finish() for agent in agents] == [0] * len(agents)
        for agent in agents:
            assert "Traceback" not in agent.log()
        for path in (self.folder / "coordinator" / "blobs").glob("*/*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        status = self.operator.expect(200, "GET", f"/v1/runs/{RUN}")["status"]
        assert (status["state"], status["rounds_published"]) == ("COMPLETED", self.spec.rounds)
        return self.adapters()


@contextmanager
def site(
    template: Path, folder: Path, database: URL | None = None, changes: Mapping[str, object] | None = None
) -> Iterator[Site]:
    """A site copied from `template` into `folder`, with a run in DRAFT; `database` is migrated and empty."""
    shutil.copytree(template, folder, symlinks=True)
    settings = dict(SETTINGS)
    url = URL.create("sqlite", database=str(folder / "coordinator" / "flexlora.db"))
    if database is not None:
        copy_rows(url, database)
        url, settings["FLEXLORA_DATABASE_URL"] = database, database.render_as_string(hide_password=False)
    made, store = Cluster(folder, settings), Store(url)
    made.start()
    try:
        for name in (*AGENTS, HAND):
            home = folder / name
            credentials.save(home, credentials.load(home).model_copy(update={"url": made.url}))
        with httpx2.Client(base_url=made.url, timeout=60) as http:
            described = describe(str((template / "model").resolve()))
            unpinned = described.model.model_copy(
                update={"fingerprint": None}
            )  # the participant by hand cannot tell it
            definition = {
                "name": RUN,
                **skeleton(replace(described, model=unpinned)),
                "ranks": sorted([*AGENTS.values(), HAND_RANK]),
                "scaling": {"alpha_per_rank": 1.0},
                "rounds": 2,
                "min_clients": len(AGENTS) + 1,
                "min_updates": len(AGENTS) + 1,
                "training": {"learning_rate": 0.001, "epochs": 2, "batch_size": 8, "max_length": 32},
                **(changes or {}),
            }
            spec = Api(http, made.operator_key).expect(201, "POST", "/v1/runs", json=definition)["spec"]
            yield Site(made, store, RunSpec.model_validate(spec, strict=False), http)
    finally:
        made.stop()
        store.close()
