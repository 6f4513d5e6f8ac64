"""The checks of the way to a coordinator, against servers with certificates and clocks of the test's own."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from flexlora_client.agent.checks.connection_checks import CONNECTION_CHECKS
from flexlora_client.agent.checks.findings import Finding, examine
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import Backoff
from flexlora_client.coordinator_api.tls import Tls, read_authorities
from flexlora_shared.versions import version_headers
from tests.support.certificates import make_authority, server_context
from tests.support.connecting import Waits
from tests.support.misbehaving import Asked, Planned, misbehaving


def at(ahead: float) -> Planned:
    """An answer of a coordinator whose clock is so many seconds ahead."""

    def planned(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        handler.send_response_only(404)
        handler.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True))
        for name, value in version_headers().items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return planned


def found(url: str, tls: Tls, folder: Path) -> dict[str, Finding]:
    """What the first three checks find."""
    with Api(Http(url, "a-key", tls), Waits().retry(Backoff(attempts=1))) as api:
        subject = Subject(folder, "run", 4, {}, folder)
        subject.api = api
        return {finding.check: finding for finding in examine(CONNECTION_CHECKS[:3], subject)}


@pytest.mark.parametrize(("days", "state"), [(30, "passed"), (5, "warning")])
def test_until_when_the_certificate_is_valid(tmp_path: Path, days: int, state: str) -> None:
    authority = make_authority(tmp_path)
    context = server_context(authority.sign("localhost", (-1, days)))
    with misbehaving(at(0), tls=context) as server:
        tls = found(server.url, Tls(read_authorities(authority.file)), tmp_path)["tls"]
    assert tls.state == state
    assert f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}" in tls.detail


@pytest.mark.parametrize(
    ("ahead", "state", "detail"),
    [(0, "passed", "a few seconds"), (600, "warning", " s behind"), (-600, "warning", "s ahead of")],
)
def test_a_clock_that_differs(tmp_path: Path, ahead: float, state: str, detail: str) -> None:
    with misbehaving(at(ahead)) as server:
        clock = found(server.url, Tls(), tmp_path)["clock"]
    assert (clock.state, detail in clock.detail) == (state, True), clock


def test_a_web_server_that_is_no_coordinator(tmp_path: Path) -> None:
    with misbehaving() as server:
        results = found(server.url, Tls(), tmp_path)
    assert results["address"].state == "failed"
    assert "no answer of a FlexLoRA coordinator" in results["address"].detail
    assert results["tls"].state == "skipped"
