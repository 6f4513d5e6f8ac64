"""Every answer says which version gave it; clients of another protocol are refused."""

from collections.abc import Callable

import httpx2
import pytest
import typer

from flexlora_client.cli.commands import app as client
from flexlora_server.cli import app as server
from flexlora_server.database.queries import runs
from flexlora_shared.versions import PROTOCOL, version, version_headers, version_line
from tests.support.kit import Participant, Served

Ask = Callable[[Served, Participant], httpx2.Response]
SLICE = "/v1/runs/run/rounds/0/adapter?rank=2"
ANSWERS: dict[str, tuple[int, Ask]] = {
    "a message": (200, lambda c, p: c.operator.call("GET", "/v1/runs")),
    "nothing to do": (204, lambda c, p: p.call("GET", "/v1/runs/run/task")),
    "a slice": (200, lambda c, p: p.call("GET", SLICE)),
    "a part of a slice": (206, lambda c, p: p.call("GET", SLICE, headers={"Range": "bytes=1-2"})),
    "a slice's head": (200, lambda c, p: p.call("HEAD", SLICE)),
    "a slice unchanged": (304, lambda c, p: p.call("GET", SLICE, headers={"If-None-Match": "*"})),
    "a stranger": (401, lambda c, p: c.http.get("/v1/runs")),
    "no such address": (404, lambda c, p: c.http.get("/nothing")),
    "no such method": (405, lambda c, p: c.http.delete("/v1/runs")),
    "no such form": (422, lambda c, p: c.operator.call("POST", "/v1/runs", json={})),
    "the page": (200, lambda c, p: c.operator.call("GET", "/")),
    "the figures": (200, lambda c, p: c.operator.call("GET", "/metrics")),
    "readiness": (200, lambda c, p: c.http.get("/readyz")),
}


def says_the_version(response: httpx2.Response) -> bool:
    """Each header once."""
    return all(response.headers.get_list(name) == [value] for name, value in version_headers().items())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_answer_says_the_version(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    participant = coordinator.enroll()
    participant.declare("run", 2)
    for name, (status, ask) in ANSWERS.items():
        response = ask(coordinator, participant)
        assert (response.status_code, says_the_version(response)) == (status, True), name
    with coordinator.http.stream(
        "GET", "/v1/runs/run/events", headers={"Authorization": f"Bearer {participant.key}"}
    ) as events:
        assert says_the_version(events)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_defect_says_the_version(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "list_all", fails)
    response = coordinator.operator.call("GET", "/v1/runs")
    assert (response.status_code, says_the_version(response)) == (500, True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_anybody_may_ask_which_version_lives(coordinator: Served) -> None:
    alive = {"status": "alive", "version": version(), "protocol": PROTOCOL}
    assert coordinator.http.get("/healthz").json() == alive
    assert coordinator.http.get("/healthz", headers={"FlexLoRA-Protocol": "99"}).json() == alive
    assert coordinator.http.get("/openapi.json").json()["info"]["version"] == version()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_client_of_this_protocol_may_be_of_any_version(coordinator: Served) -> None:
    headers = {"FlexLoRA-Protocol": str(PROTOCOL), "FlexLoRA-Version": "99.0"}
    coordinator.operator.expect(200, "GET", "/v1/runs", headers=headers)


@pytest.mark.parametrize("program", ["server", "client"])
def test_the_programs_say_their_version(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command({"server": server, "client": client}[program])
    assert command.main(["--version"], standalone_mode=False) == 0
    assert capsys.readouterr().out.splitlines() == [version_line(f"flexlora-{program}")]
