"""A run whose storage or database fails: two real agents, two scripted participants, and checks of how requests are refused."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import URL

from flexlora_client import credentials
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import Api, Participant, encode, part, tensors
from tests.system.endurance.place import Place, Receipt, place
from tests.system.endurance.processes import Program
from tests.system.endurance.template import AGENTS, RUN
from tests.system.endurance.verdict import judge

ROUNDS = 2
REAL, HANDS = ("tiny", "small"), ("middle", "large")
LONGEST = 10.0  # seconds within which even a coordinator in trouble answers
SILENCE = 20.0  # the same where it waits for an object store that says nothing, for 10 s


@dataclass
class Scene:
    """The running processes, and what the hands have receipts for."""

    place: Place
    http: httpx2.Client
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def operator(self) -> Api:
        return Api(self.http, self.place.cluster.operator_key)

    @property
    def spec(self) -> RunSpec:
        spec = self.operator.expect(200, "GET", f"/v1/runs/{RUN}")["spec"]
        return RunSpec.model_validate(spec, strict=False)

    def hand(self, name: str) -> Participant:
        """A participant that the test leads."""
        identity = credentials.load(self.place.cluster.folder / name)
        return Participant(self.http, identity.api_key, identity.client_id)

    def declare(self) -> None:
        for name in HANDS:
            self.hand(name).declare(RUN, AGENTS[name])

    def task(self, name: str, number: int) -> dict[str, Any]:
        """A hand's task of this round, waited for."""
        found: list[dict[str, Any]] = []

        def ask() -> bool:
            response = self.hand(name).call("GET", f"/v1/runs/{RUN}/task", params={"wait": 20})
            found.extend([response.json()] if response.status_code == 200 else [])
            return bool(found)

        self.place.until(ask, f"{name} has a task")
        assert found[0]["round"] == number
        return found[0]

    def update(self, name: str, number: int) -> bytes:
        """A hand's update, the same in every scene."""
        made = tensors(self.spec, AGENTS[name], seed=100 * number + AGENTS[name])
        return encode({key: 0.01 * tensor for key, tensor in made.items()})

    def commit(self, name: str, number: int, upload: str) -> None:
        """Commit and keep the receipt."""
        receipt = self.hand(name).commit(upload)
        self.receipts.append((self.hand(name).client_id, number, receipt["sha256"]))

    def announce(self, name: str, number: int) -> tuple[str, bytes]:
        """Announce a hand's update of a round: the upload's id, and what is to be sent."""
        data = self.update(name, number)
        upload: str = self.hand(name).announce(self.task(name, number), data)["id"]
        return upload, data

    def take_part(self, number: int, *names: str) -> None:
        """All that these hands do in a round."""
        for name in names:
            upload, data = self.announce(name, number)
            self.hand(name).send(upload, data)
            self.commit(name, number, upload)

    def go_on(self, name: str, number: int, upload: str, data: bytes) -> int:
        """Send what is missing, from where the coordinator says, and commit; that offset."""
        offset = int(self.hand(name).call("HEAD", f"/v1/uploads/{upload}").headers["upload-offset"])
        if offset < len(data):
            self.hand(name).send(upload, data, offset)
        self.commit(name, number, upload)
        return offset

    def part(self, name: str, upload: str, data: bytes) -> httpx2.Response:
        """The whole update in one part, whatever is answered."""
        headers = part(data, 0, last=True)
        return self.hand(name).call("PATCH", f"/v1/uploads/{upload}", headers=headers, content=data)

    def others_upload(self, number: int, count: int) -> None:
        """Wait for so many updates of a round to be accepted."""
        self.place.until(
            lambda: self.place.accepted(number) == count, f"{count} updates of round {number} are accepted"
        )

    def finish(self, undisturbed: dict[int, str]) -> None:
        """The last round, and a look at the whole run: what is published is what would have been without the outage."""
        self.take_part(ROUNDS, *HANDS)
        self.place.until_agents_end()
        verdict = judge(self.place, undisturbed, self.place.receipts() + self.receipts)
        assert verdict.good, verdict
        assert verdict.receipts == ROUNDS * len(AGENTS)
        for one in self.place.programs:
            assert one.starts == 1, "nobody was started again"
            assert "Traceback" not in one.log.read_text() or one.name == "worker", one.log.read_text()


@contextmanager
def scene(
    template: Path, folder: Path, database: URL | None = None, gated: str = "", **settings: str
) -> Iterator[Scene]:
    """A run in its first round, in which the hands have declared; an agent that is `gated` waits before it uploads."""
    settings = {"FLEXLORA_PRESENCE_WINDOW": "3600", **settings}  # hands do not poll while the test looks elsewhere
    with (
        place(template, folder, ROUNDS, database, agents=REAL, gated=gated, **settings) as running,
        httpx2.Client(base_url=running.cluster.url, timeout=60) as http,
    ):
        made = Scene(running, http)
        made.declare()
        yield made


def check_refused(response: httpx2.Response, *codes: str, within: float = LONGEST) -> None:
    """It must be one of these problems: in time, with a sentence, and with how long to wait."""
    assert response.headers.get("content-type") == "application/problem+json", (response.status_code, response.text)
    body = response.json()
    assert body["code"] in codes, body
    assert response.status_code == {"storage-full": 507, "unavailable": 503}[body["code"]]
    assert body["detail"].endswith("."), body
    assert int(response.headers["retry-after"]) > 0
    assert response.elapsed.total_seconds() < within


def keep_asking(seconds: float, *requests: Callable[[], httpx2.Response], within: float = LONGEST) -> int:
    """Ask again and again for so long; each answer must be that the service is unavailable. How many there were."""
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for request in requests:
            check_refused(request(), "unavailable", within=within)
            count += 1
    return count


def suspend_aggregation(running: Place, number: int) -> None:
    """SIGSTOP the worker while it aggregates a round."""

    def at_work() -> bool:
        round_ = running.round(number)
        return round_ is not None and round_.state == "AGGREGATING" and round_.lease_until is not None

    running.until(at_work, f"the worker aggregates round {number}")
    send(running.worker, signal.SIGSTOP)
    assert at_work(), "the worker was stopped too late"


def send(program: Program, number: signal.Signals) -> None:
    """A signal to a program's process."""
    assert program.process is not None
    assert program.process.pid is not None
    os.kill(program.process.pid, number)
