"""A coordinator, its worker and agents in one folder, each a process of its own; and what is seen of them from outside."""

import json
import shutil
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, select

from demo.cluster import Cluster
from flexlora_client import credentials
from flexlora_server.database.queries import rounds, uploads
from flexlora_server.database.schema import Adapter, Round, Run
from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from tests.support.processes import until
from tests.support.site import copy_rows
from tests.system.endurance.gates import FOLDER, Gates, gates
from tests.system.endurance.processes import Program, wait_for_an_end
from tests.system.endurance.template import AGENTS, RUN, definition

LAST = "large"  # the participant whose training waits for the gate, where no other is named
LEASE = 2.0  # seconds
Receipt = tuple[str, int, str]  # a participant's id, a round, the digest of its update


@dataclass(frozen=True)
class Place:
    """The processes of one run, and its database opened beside them."""

    cluster: Cluster  # its folder and its commands; the processes are ours
    store: Store
    coordinator: Program
    worker: Program
    agents: dict[str, Program]
    gates: Gates

    @property
    def programs(self) -> list[Program]:
        """Everything that can be killed."""
        return [self.coordinator, self.worker, *self.agents.values()]

    @property
    def settings(self) -> Settings:
        """What the coordinator is told."""
        told = self.cluster.settings.items()
        return Settings.model_validate({name.removeprefix("FLEXLORA_").lower(): value for name, value in told})

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Return when the condition holds.

        Raises:
            TimeoutError: it never did.
            RuntimeError: a process ended by itself meanwhile.
        """

        def holds() -> bool:
            if condition():
                return True
            self.check_running()
            return False

        until(holds, f"{what}; see {self.cluster.folder}")

    def until_agents_end(self) -> None:
        """Return when all agents have ended well.

        Raises:
            TimeoutError: one goes on.
            RuntimeError: one ended otherwise, or something else did.
        """
        while self.agents.keys() & (going_on := self._going_on()).keys():
            self.check_running()
            wait_for_an_end(list(going_on.values()))
        self.check_running()

    def _going_on(self) -> dict[str, Program]:
        return {one.name: one for one in self.programs if one.ended() is None}

    def check_running(self) -> None:
        """See that nobody has ended but agents whose run is complete. Raises: RuntimeError."""
        for one in self.programs:
            code = one.ended() if one.process is not None else None
            if code is not None and not (code == 0 and one.name in self.agents):
                raise RuntimeError(f"{one.name} ended by itself with code {code}; see {one.log}")

    def serve(self) -> None:
        """Wait until the coordinator listens."""
        self.until(lambda: b"http://" in self.coordinator.output.read_bytes(), "the coordinator serves")

    def open_gate(self, number: int) -> None:
        """Let the last participant of this round upload."""
        self.gates.open(number)

    # the database, from outside

    def round(self, number: int) -> Round | None:
        """The latest attempt, once there is one."""
        with self.store.reading() as tx:
            wanted = select(Round).where(Round.run == RUN, Round.number == number).order_by(Round.attempt.desc())
            return tx.session.scalar(wanted.limit(1))

    def accepted(self, number: int) -> int:
        """Updates of a round that are accepted; none before it is planned."""
        round_ = self.round(number)
        if round_ is None:
            return 0
        with self.store.reading() as tx:
            return rounds.count_uploads(tx, round_, "ACCEPTED")

    def arriving(self, number: int) -> bool:
        """Whether bytes of an update lie at the coordinator, or all have come."""
        partial = self.cluster.folder / "coordinator" / "partial"
        with self.store.reading() as tx:
            wanted = uploads.open_ids(tx)
        return any((partial / upload).exists() for upload in wanted) or self.accepted(number) == len(AGENTS)

    def published(self) -> dict[int, str]:
        """Digests of the global updates by round."""
        with self.store.reading() as tx:
            return {row.number: row.sha256 for row in tx.session.scalars(select(Adapter).where(Adapter.run == RUN))}

    def state(self) -> str:
        """Of the run."""
        with self.store.reading() as tx:
            return tx.session.get_one(Run, RUN).state

    def receipts(self) -> list[Receipt]:
        """What agents reported as accepted."""
        found = []
        for name, agent in self.agents.items():
            client = credentials.load(self.cluster.folder / name).client_id
            lines = (line for path in agent.outputs for line in path.read_text().splitlines(keepends=True))
            events = (json.loads(line) for line in lines if line.endswith("\n"))  # a kill may cut the last one
            found += [(client, event["round"], event["sha256"]) for event in events if event["event"] == "accepted"]
        return found


@contextmanager
def place(
    template: Path,
    folder: Path,
    count: int,
    database: URL | None = None,
    *,
    agents: Collection[str] = AGENTS,
    gated: str = LAST,
    **more: str,
) -> Iterator[Place]:
    """A copy of `template` in which a run of `count` rounds has just begun, with some of the participants as agents.

    `database` is migrated and empty, None: SQLite; the training of `gated` waits for `open_gate`; `more` are further settings.
    In `folder` something may be mounted already.
    """
    shutil.copytree(template, folder, dirs_exist_ok=True)
    url = URL.create("sqlite", database=str(folder / "coordinator" / "flexlora.db"))
    settings = {"FLEXLORA_DATA_DIR": str(folder / "coordinator"), "FLEXLORA_PORT": str(_free_port())}
    settings |= {"FLEXLORA_WORKERS": "0", "FLEXLORA_LEASE_SECONDS": str(LEASE), "FLEXLORA_AGGREGATION_THREADS": "1"}
    settings |= more
    if database is not None:
        copy_rows(url, database)
        url, settings["FLEXLORA_DATABASE_URL"] = database, database.render_as_string(hide_password=False)
    address = f"http://127.0.0.1:{settings['FLEXLORA_PORT']}"
    started = {name: _agent(folder, name, address, gated == name) for name in agents}
    with gates(folder / "gates", count) as closed, ExitStack() as ending:
        made = Place(
            Cluster(folder, settings, address),
            Store(url),
            Program("coordinator", ["flexlora-server", "serve"], settings, folder),
            Program("worker", ["flexlora-server", "worker"], settings, folder),
            started,
            closed,
        )
        ending.callback(made.store.close)
        for one in made.programs:
            ending.callback(one.kill)
        for one in (made.coordinator, made.worker):
            one.start()
        made.serve()
        made.cluster.create_run(definition(count))
        for agent in made.agents.values():
            agent.start()
        yield made


def _agent(folder: Path, name: str, url: str, gated: bool) -> Program:
    home = folder / name
    credentials.save(home, credentials.load(home).model_copy(update={"url": url}))
    given = ["--rank", str(AGENTS[name]), "--data", str(home / "data.jsonl"), "--heldout-fraction", "0"]
    loop = ["--trainer", "tests.system.endurance.trainer:Paced", "--threads", "1", "--device", "cpu", "--json"]
    held = {FOLDER: str(folder / "gates")} if gated else {}
    environment = {"FLEXLORA_HOME": str(home), "FLEXLORA_URL": url, **held}
    return Program(name, ["flexlora-client", "run", RUN, *given, *loop], environment, folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
