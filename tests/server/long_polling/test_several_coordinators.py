"""Two coordinators at one database and one data folder: a commit at one wakes the polls at the other."""

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import URL, text

from flexlora_server.database import engine, notifications
from flexlora_server.database.transactions import Store
from flexlora_server.long_polling import waiting_room
from tests.support.kit import Api, Clock, Participant, Served, encode, served, tensors

HOUR = 3600.0
PAIR = tuple[Served, Served]


@contextmanager
def two(url: URL, folder: Path, clock: Clock) -> Iterator[PAIR]:
    """Two coordinators with a store each."""
    stores = Store(url, clock), Store(url, clock)
    try:
        with served(stores[0], folder, clock) as a, served(stores[1], folder, clock) as b:
            yield a, b
    finally:
        for store in stores:
            store.close()


def at(coordinator: Served, participant: Participant) -> Participant:
    """The participant, calling this coordinator."""
    return replace(participant, http=coordinator.http)


@contextmanager
def polling(participant: Participant, coordinator: Served) -> Iterator["Future[Any]"]:
    """A long poll in progress; the block begins when the coordinator holds it."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(participant.call, "GET", "/v1/runs/run/task", params={"wait": 60})
        while (
            not answer.done() and "flexlora_waiting_agents 1.0" not in coordinator.operator.call("GET", "/metrics").text
        ):
            pass
        yield answer


def listeners(coordinator: Served) -> int:
    """Connections to the coordinator's database that listen."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN flexlora'"
    )
    with coordinator.store.reading() as tx:
        return int(tx.session.scalar(query) or 0)


@pytest.fixture
def postgres_only(request: pytest.FixtureRequest) -> None:
    """These tests are about PostgreSQL's notifications."""
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has no notifications")


@pytest.fixture
def pair(database_url: URL, tmp_path: Path, clock: Clock) -> Iterator[PAIR]:
    """Two coordinators of each kind of database in turn."""
    with two(database_url, tmp_path / "data", clock) as both:
        yield both


@pytest.fixture
def notified_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No coordinator polls by itself: only notifications wake it."""
    monkeypatch.setattr(waiting_room, "POLL_EVERY_S", HOUR)


@pytest.fixture
def polled_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No notification arrives: only polls find what others did."""
    monkeypatch.setattr(notifications, "CHANNEL", "nobody")
    monkeypatch.setattr(notifications, "notify", lambda session: None)


def collecting(a: Served, b: Served) -> tuple[Participant, Participant]:
    """A paused run of two participants: it goes on as soon as it is resumed."""
    a.run(min_clients=2, min_updates=2)
    a.operator.expect(200, "POST", "/v1/runs/run/pause")
    first, second = a.enroll("first"), b.enroll("second")
    for participant in (first, second):
        participant.declare("run", 4)
    return first, second


def woken_by_the_other(a: Served, b: Served) -> None:
    first, _ = collecting(a, b)
    resumed_by_the_other(a, b, first)


def resumed_by_the_other(a: Served, b: Served, first: Participant) -> None:
    with polling(at(a, first), a) as answer:
        assert not answer.done()
        b.operator.expect(200, "POST", "/v1/runs/run/resume")
        assert answer.result().status_code == 200
        assert answer.result().json()["round"] == 1


def revoked_by_the_other(a: Served, b: Served) -> None:
    first, _ = collecting(a, b)
    with polling(at(a, first), a) as answer:
        assert not answer.done()
        b.operator.expect(204, "DELETE", f"/v1/clients/{first.client_id}")
        assert answer.result().status_code == 401
        assert answer.result().json()["code"] == "unauthenticated"


@pytest.mark.usefixtures("postgres_only", "notified_only")
@pytest.mark.parametrize("check", [woken_by_the_other, revoked_by_the_other])
def test_an_agent_is_told(pair: PAIR, check: Any) -> None:
    a, b = pair
    while listeners(a) < 2:
        pass
    check(a, b)


@pytest.mark.usefixtures("polled_only")
@pytest.mark.parametrize("check", [woken_by_the_other, revoked_by_the_other])
def test_looking_finds_it_too(pair: PAIR, check: Any) -> None:
    check(*pair)


@pytest.mark.usefixtures("postgres_only", "notified_only")
def test_event_streams_are_told(pair: PAIR) -> None:
    a, b = pair
    collecting(a, b)
    seen, done = [], threading.Event()

    def watch() -> None:
        with a.http.stream(
            "GET", "/v1/runs/run/events", headers={"Authorization": f"Bearer {a.operator.key}"}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    seen.append(json.loads(line.removeprefix("data:"))["kind"])
                    done.set() if seen[-1] == "run-paused" else None

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        assert done.wait(60)
        b.operator.expect(200, "POST", "/v1/runs/run/cancel")
        watching.result()
    assert "run-cancelled" in seen


@pytest.mark.usefixtures("postgres_only", "notified_only")
def test_a_lost_listener_listens_again(pair: PAIR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "RECONNECT_AFTER_S", 0.0)
    a, b = pair
    while listeners(a) < 2:
        pass
    with a.store.transaction() as tx:
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN flexlora'"
        tx.session.execute(text(ending))
    while listeners(a) < 2:
        pass
    woken_by_the_other(a, b)


def test_a_round_at_two_coordinators(pair: PAIR) -> None:
    """Each participant does every step at another coordinator than the one before."""
    a, b = pair
    run = a.run(min_clients=2, min_updates=2, rounds=1)
    people = a.enroll("first"), b.enroll("second")
    for participant, coordinator in zip(people, (b, a), strict=True):
        at(coordinator, participant).declare("run", 4)
    with ThreadPoolExecutor(2) as pool:
        tasks = list(pool.map(lambda one: at(one[0], one[1]).task("run"), zip((a, b), people, strict=True)))
    for seed, (participant, task) in enumerate(zip(people, tasks, strict=True)):
        data = encode(tensors(run, 4, seed=seed))
        upload = at(a, participant).announce(task, data)["id"]
        at(b, participant).send(upload, data)
        receipt = at(a, participant).commit(upload)
        assert receipt["sha256"] == hashlib.sha256(data).hexdigest()
        assert at(b, participant).commit(upload) == receipt
    assert b.work() == 1
    for coordinator in (a, b):
        assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 2
        assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
        Api(coordinator.http, people[0].key).problem("run-over", "GET", "/v1/runs/run/task")


@contextmanager
def hung(store: Store) -> Iterator[None]:
    """PostgreSQL's processes stand still: what is sent is taken, and nothing is answered."""
    with store.reading() as tx:
        backends = tx.session.scalars(text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")).all()
    stopped = [psutil.Process(psutil.Process(backends[0]).ppid()), *map(psutil.Process, backends)]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            process.resume()


@pytest.mark.slow
@pytest.mark.usefixtures("postgres_only")
def test_a_hung_database_holds_nobody_up(
    database_url: URL, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine.KEEPALIVE_OPTIONS, "connect_timeout", 2)
    with two(database_url, tmp_path / "data", clock) as (a, b):
        first, _ = collecting(a, b)
        with pytest.MonkeyPatch.context() as patch, hung(a.store):
            patch.setattr(engine, "ANSWER_TIMEOUT_S", 1.0)
            Api(a.http).problem("unavailable", "GET", "/readyz")
            at(b, first).problem("unavailable", "GET", "/v1/runs/run")
            assert a.http.get("/healthz").status_code == 200
        for coordinator in (a, b):
            while coordinator.http.get("/readyz").status_code != 200:
                pass
        resumed_by_the_other(a, b, first)
