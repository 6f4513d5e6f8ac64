"""Presence: a participant counts while it waits on an open connection, and no longer."""

import socket
from urllib.parse import urlsplit

from tests.support.kit import Participant, Served


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
