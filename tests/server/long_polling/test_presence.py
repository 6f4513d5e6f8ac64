"""Presence: a participant counts while it waits on an open connection, and no longer."""

import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from flexlora_server.api import services
from tests.support.kit import Participant, Served, spec


def poll(coordinator: Served, participant: Participant) -> socket.socket:
    """A long poll of a minute, sent and not read."""
    parts = urlsplit(coordinator.url)
    connection = socket.create_connection((parts.hostname, parts.port or 80))
    head = f"GET /v1/runs/run/task?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {participant.key}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def present(coordinator: Served) -> int:
    return int(coordinator.round("run", 1)["summary"]["participants"]["present"])


def waiting_for(coordinator: Served) -> str:
    return str(coordinator.round("run", 1)["summary"]["waiting_for"])


def waiting(coordinator: Served) -> bool:
    return "flexlora_waiting_agents 0.0" not in coordinator.operator.call("GET", "/metrics").text


def test_an_agent_that_died_is_no_longer_present(coordinator: Served) -> None:
    coordinator.run(min_clients=2, min_updates=2)
    participant = coordinator.enroll()
    participant.declare("run", 4)
    coordinator.clock.advance(60)  # its declaration is no sign of life any more
    assert present(coordinator) == 0
    connection = poll(coordinator, participant)
    while present(coordinator) == 0:  # bounded by the test's own timeout: the poll is written within a tick
        pass
    connection.close()
    while waiting(coordinator):
        pass
    coordinator.clock.advance(60)
    assert present(coordinator) == 0


def test_a_round_waits_for_everyone_who_declared(coordinator: Served) -> None:
    coordinator.run(gather_timeout=30.0)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")
    early, late = coordinator.enroll("early"), coordinator.enroll("late")
    for participant in (early, late):
        participant.declare("run", 4)
    coordinator.clock.advance(16)  # a declaration is no sign of life any more
    coordinator.operator.expect(200, "POST", "/v1/runs/run/resume")
    early.expect(204, "GET", "/v1/runs/run/task", params={"wait": 1})
    while not waiting_for(coordinator).startswith("Waiting for participants: 1 of 2 are present."):
        pass  # bounded by the test's own timeout: who has polled is written at the next look
    coordinator.clock.advance(14)
    assert early.task("run")["round"] == 1


def test_a_pattern_is_cut_for_those_who_declared_it(coordinator: Served) -> None:
    coordinator.run()
    participant = coordinator.enroll()
    adapter = "/v1/runs/run/rounds/0/adapter"
    query = {"rank": 2, "pattern": '{"q_proj": 8}'}
    participant.problem("rank-not-allowed", "GET", adapter, params=query)
    participant.declare("run", 2, pattern={"q_proj": 8})
    participant.expect(200, "GET", adapter, params=query)
    coordinator.operator.expect(200, "GET", adapter, params={"rank": 4, "pattern": '{"up_proj": 2}'})


def test_where_a_round_begins_all_who_wait_get_their_task(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands are woken at once and queue for threads: however long that takes, nobody is told that the database hangs."""
    participants = [coordinator.enroll(f"p{number}") for number in range(12)]
    coordinator.operator.expect(201, "POST", "/v1/runs", json=spec(min_clients=12))
    with ThreadPoolExecutor(12) as pool:
        for participant in participants:
            participant.declare("run", 4)
        polls = [pool.submit(participant.task, "run", 60) for participant in participants]
        while "flexlora_waiting_agents 12.0" not in coordinator.operator.call("GET", "/metrics").text:
            pass  # bounded by the test's own timeout
        monkeypatch.setattr(
            services, "MAX_THREAD_WAIT_S", 0
        )  # no call gets a thread that has a bound on the wait for it
        coordinator.operator.expect(200, "POST", "/v1/runs/run/start")
        coordinator.work()
        assert [poll.result()["round"] for poll in polls] == [1] * 12
