"""One simulated world: the real coordinator, worker, store and blobs on a simulated machine, and the agents around them."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.api.services import Services
from flexlora_server.app import create_app
from flexlora_server.database.queries import clients
from flexlora_server.long_polling.waiting_room import WaitingRoom
from flexlora_server.storage import open_blobs
from flexlora_server.worker.garbage_collector import collect_garbage
from flexlora_server.worker.worker import Worker
from flexlora_shared.messages.clients import Enrollment, TokenRequest
from tests.chaos.agent import Agent
from tests.chaos.history import Interruption, Plan
from tests.chaos.loop import Answer, Request, exchange
from tests.chaos.machine import Died, Process, Violation
from tests.chaos.onehot import RANKS
from tests.chaos.oracle import Oracle
from tests.chaos.run import spec
from tests.chaos.seams import simulated
from tests.chaos.site import Site
from tests.support.kit import OPERATOR_KEY, Clock


class World:
    """One history's world; `installed` seams must be in place."""

    def __init__(self, here: Site, plan: Plan) -> None:
        self.here, self.plan, self.machine, self.clock = here, plan, here.machine, here.clock
        self.trace: list[str] = []
        self.agents: list[Agent] = []
        self.enrolled = 0
        self.calls = self.steps = 0
        self.cancelled = False
        self.processes = [Process(f"coordinator {n + 1}") for n in range(plan.coordinators)]
        self.workers = [Process("worker 1"), Process("worker 2")]
        self._apps: dict[Process, tuple[int, FastAPI]] = {}
        self._bodies: dict[Process, tuple[int, Worker]] = {}
        self._clean()
        self.oracle = Oracle(here.plain, self._blob, here.settings.data_dir, self.note, self.plan.holds_more)
        here.machine.note = self.note

    def note(self, line: str) -> None:
        """Write the trace."""
        self.trace.append("    " * max(0, len(self.machine.frames)) + line)

    def _clean(self) -> None:
        here = self.here
        here.clock.now, here.machine.frames, here.loops.waited = Clock().now, [], 0.0
        here.ids.restart()
        here.plain.empty()
        here.disk.wipe()

    def _blob(self, sha256: str) -> Path:
        return self.coordinator(0)[1].blobs.path(sha256)

    # -- processes

    def coordinator(self, number: int) -> tuple[Process, Services]:
        """A coordinator that runs: started again where it has died."""
        process = self.processes[number % len(self.processes)]
        known = self._apps.get(process)
        if known is None or known[0] != process.incarnation:
            incarnation = process.incarnation
            app = self.machine.run(process, lambda: create_app(self.here.settings, self.here.store))
            app.state.services.waiting_room._poller._clock = self.here.loops.time
            self._apps[process] = (incarnation, self.here.routed(process.name, app))
        coordinator = self._apps[process][1].state.services
        assert isinstance(coordinator, Services)
        return process, coordinator

    def worker(self, number: int) -> tuple[Process, Worker]:
        """A worker that runs."""
        process = self.workers[number % len(self.workers)]
        known = self._bodies.get(process)
        if known is None or known[0] != process.incarnation:
            blobs = self.machine.run(process, lambda: open_blobs(self.here.settings))
            self._bodies[process] = (process.incarnation, Worker(self.here.store, blobs, self.here.settings))
        return process, self._bodies[process][1]

    def cut_power(self) -> None:
        """Everything dies at once."""
        self.note("the power is cut")
        for process in (*self.processes, *self.workers):
            process.kill()
        with self.machine.aside():
            self.here.disk.cut_power()

    # -- calls

    def call(
        self, request: Request, number: int = 0, lost: str = "", during: Sequence[Interruption] = ()
    ) -> Answer | None:
        """Make a call to a coordinator; None where the caller never hears of it."""
        if lost == "request":
            self.note(f"{request}: never arrives")
            return None
        self.calls += 1
        process, _ = self.coordinator(number)
        app = self._apps[process][1]
        self.note(f"{request}")
        try:
            answer = self.machine.run(process, lambda: self.here.loops.run(exchange(app, request)), during)
        except Died:
            self.note("-> dies")
            return None
        except Exception as error:
            raise Violation(f"{request} failed with a defect: {type(error).__name__}: {error}") from error
        self.note(f"-> {answer.status} {answer.code}" + (", lost" if lost else ""))
        return None if lost else answer

    def command(self, method: str, path: str, told: Any = None, **options: Any) -> Answer | None:
        """A call by the operator."""
        body = b"" if told is None else json.dumps(told).encode()
        return self.call(Request(method, path, OPERATOR_KEY, body, {"content-type": "application/json"}), **options)

    def must(self, method: str, path: str, told: Any = None) -> Any:
        """The same, before any fault: it must succeed."""
        answer = self.command(method, path, told)
        assert answer is not None
        assert answer.status < 300, answer
        return answer.json if answer.body else None

    # -- what happens by itself

    def tick(self, number: int, during: Sequence[Interruption] = ()) -> None:
        """One poll by a coordinator's waiting room."""
        process, coordinator = self.coordinator(number)
        self._by_itself(process, lambda: self.here.loops.run(_poll_once(coordinator.waiting_room)), during)

    def work(self, number: int, during: Sequence[Interruption] = ()) -> None:
        """A worker works on a round, where one waits: this one, or another one where it is in the middle of something."""
        busy = {frame.process for frame in self.machine.frames}
        idle = [one for one in (number, number + 1) if self.workers[one % len(self.workers)] not in busy]
        if idle:
            process, worker = self.worker(idle[0])
            self._by_itself(process, lambda: bool(worker.step()), during)

    def collect_garbage(self, number: int, during: Sequence[Interruption] = ()) -> None:
        """A worker collects garbage; files are as old as the simulated clock says."""
        self.here.disk.age(self.clock())
        process, _ = self.worker(number)
        self._by_itself(process, lambda: collect_garbage(self.here.store, open_blobs(self.here.settings)), during)

    def _by_itself(self, process: Process, work: Callable[[], Any], during: Sequence[Interruption]) -> None:
        try:
            self.machine.run(process, work, during)
        except Died:
            self.note("-> dies")
        except Exception as error:
            if not (simulated(error) and isinstance(error, SQLAlchemyError | OSError)):
                raise Violation(f"{process.name} failed: {type(error).__name__}: {error}") from error
            self.note(f"-> {type(error).__name__}, tried again later")

    def state(self) -> str:
        """The run's."""
        return str(self.oracle.states["run", "run"])

    def until_deadline(self) -> float | None:
        """Seconds until the deadline of the round that collects; None where none does."""
        found = self.here.plain.ask("SELECT deadline FROM rounds WHERE state = 'COLLECTING'")
        if not found:
            return None
        deadline = datetime.fromisoformat(str(found[0][0]))
        return (deadline if deadline.tzinfo else deadline.replace(tzinfo=UTC)).timestamp() - self.clock()

    def retry(self, number: int = 0, lost: str = "", during: Sequence[Interruption] = ()) -> None:
        """The operator sends a failed round back to be aggregated, where the product knows how."""
        path = f"/v1/runs/run/rounds/{self.oracle.published + 1}/retry"
        self.command("POST", path, {"exclude": []}, number=number, lost=lost, during=during)

    # -- beginnings

    def enroll(self) -> Agent:
        """A new participant."""
        self.enrolled += 1
        name = f"agent {self.enrolled}"
        with self.here.store.transaction() as tx:
            token = clients.create_token(tx, TokenRequest())
            told = clients.enroll(tx, Enrollment(token=token.token, name=name))
        agent = Agent(name, told.client_id, told.api_key, self.oracle)
        agent.rank = RANKS[self.enrolled % 3]
        agent.hold_rank = RANKS[-1] if self.plan.holds_more else None
        self.agents.append(agent)
        return agent

    def begin(self) -> None:
        """Define and start the run, publish round 0."""
        for _ in range(self.plan.agents):
            self.enroll()
        self.must("POST", "/v1/runs", spec(self.plan))
        self.must("POST", "/v1/runs/run/start")
        self.work(0)
        self.here.disk.settle()


async def _poll_once(waiting_room: WaitingRoom) -> None:
    """One turn of the waiting room's loop; a second one does not begin in its middle."""
    if waiting_room._closing:
        return
    waiting_room._wake_event = asyncio.Event()  # of this loop: calls within calls have loops of their own
    keeping = asyncio.ensure_future(waiting_room.run())
    await asyncio.sleep(0)  # it has begun a turn, which will be its last
    waiting_room.close()
    try:
        await keeping
    finally:
        waiting_room._closing = False
