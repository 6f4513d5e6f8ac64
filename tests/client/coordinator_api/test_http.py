"""One exchange: refusals, transport faults, and answers of something that is no coordinator."""

import contextlib
import gzip
import json
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler

import pytest

from flexlora_client.coordinator_api.http import Http
from flexlora_client.errors import BadInput, Refused, Unreachable
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, Code
from flexlora_shared.versions import PROTOCOL, version
from tests.support.misbehaving import Asked, Planned, answer, cut, hang_up, misbehaving, problem
from tests.support.proxy import Fault, Kind, proxy


def refused_by(planned: Planned) -> Refused | Unreachable:
    with (
        misbehaving(planned) as server,
        Http(server.url, "a-key") as http,
        pytest.raises((Refused, Unreachable)) as caught,
    ):
        http.request("GET", "/v1/runs")
    assert isinstance(caught.value, Refused | Unreachable)
    return caught.value


def test_the_key_is_sent_and_the_answer_returned() -> None:
    with misbehaving(answer(200, b"hello", X_Found="yes")) as server, Http(server.url + "/", "a-key") as http:
        response = http.request("GET", "/v1/runs")
        assert (response.status, response.body, response.headers["x-found"]) == (200, b"hello", "yes")
        assert server.asked[0].headers["authorization"] == "Bearer a-key"
        assert server.asked[0].path == "/v1/runs"


def test_every_request_says_its_version() -> None:
    with misbehaving(answer(200), answer(200)) as server, Http(server.url, "a-key") as http:
        http.request("POST", "/v1/runs", headers={"Content-Type": "application/json"}, body=b"{}")
        with http.stream("/v1/slice"):
            pass
        for asked in server.asked:
            assert asked.headers["flexlora-protocol"] == str(PROTOCOL)
            assert asked.headers["flexlora-version"] == version()
            assert asked.headers["user-agent"] == f"flexlora-client/{version()}"


@pytest.mark.parametrize("status", [200, 204, 410, 503])
@pytest.mark.parametrize(("protocol", "older"), [(PROTOCOL + 1, "this program"), (PROTOCOL - 1, "the coordinator at")])
def test_a_coordinator_of_another_protocol_is_not_asked_again(status: int, protocol: int, older: str) -> None:
    other = answer(status, FlexLoRA_Protocol=str(protocol), FlexLoRA_Version="9.9.9")
    with misbehaving(other, other) as server, Http(server.url, "a-key") as http:
        sentence = rf"the coordinator at {server.url} \(FlexLoRA 9.9.9\) speaks protocol {protocol}, .*; update {older}"
        with pytest.raises(Unreachable, match=sentence) as caught:
            http.request("GET", "/v1/runs")
        assert not caught.value.transient
        with pytest.raises(Unreachable, match=sentence), http.stream("/v1/slice"):
            pass


def flood(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    """An answer that does not end before the other side has enough."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**31))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(2**11):
            handler.wfile.write(bytes(2**20))


def test_a_compressed_answer_is_refused() -> None:
    """A megabyte can unpack to gigabytes; the requests ask for none."""
    packed = answer(200, gzip.compress(bytes(2**24)), Content_Encoding="gzip")
    with misbehaving(packed) as server, Http(server.url, "a-key") as http:
        with pytest.raises(Unreachable, match="in the encoding 'gzip', which this program never asks for") as caught:
            http.request("GET", "/v1/runs")
        assert not caught.value.transient
        assert server.asked[0].headers["accept-encoding"] == "identity"


def test_a_proxys_compressed_page_is_told_by_its_status() -> None:
    error = refused_by(answer(503, gzip.compress(b"<html>"), Content_Encoding="gzip", Retry_After="7"))
    assert isinstance(error, Unreachable)
    assert (error.transient, error.retry_after) == (True, 7)


def test_an_endless_answer_is_refused_in_little_memory() -> None:
    with misbehaving(flood) as server, Http(server.url, "a-key") as http:
        tracemalloc.start()
        try:
            with pytest.raises(Unreachable, match="answered with more than 16 MiB, which no message has"):
                http.request("GET", "/v1/runs")
            assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
        finally:
            tracemalloc.stop()


def test_a_coordinator_behind_a_path_prefix() -> None:
    with misbehaving(answer(200)) as server, Http(server.url + "/flexlora/", "a-key") as http:
        http.request("GET", "/v1/runs")
        assert server.asked[0].path == "/flexlora/v1/runs"


def test_a_problem_becomes_a_refusal() -> None:
    error = refused_by(problem(Code.OFFSET_MISMATCH, offset=7))
    assert isinstance(error, Refused)
    assert (error.code, error.problem.context, error.transient) == (Code.OFFSET_MISMATCH, {"offset": 7}, False)
    assert str(error) == "Planned offset-mismatch. (offset-mismatch)"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 507])
def test_a_proxy_whose_coordinator_is_away_is_asked_again(status: int) -> None:
    error = refused_by(answer(status, b"<html>", Retry_After="7"))
    assert isinstance(error, Unreachable)
    assert error.transient
    assert error.retry_after == 7


def test_a_web_server_that_is_no_coordinator_is_not_asked_again() -> None:
    error = refused_by(answer(404, b"<html>"))
    assert not error.transient
    assert "no answer of a FlexLoRA coordinator" in str(error)


@pytest.mark.parametrize(("status", "transient"), [(400, False), (409, False), (429, True), (408, True), (503, True)])
def test_a_problem_this_version_does_not_know(status: int, transient: bool) -> None:
    """Its sentence is shown; its status, not the one in the body, says whether to try again."""
    problem_body = {
        "type": "x",
        "title": "New",
        "status": 418,
        "detail": "Wait.",
        "code": "brand-new",
        "hint": {"of": "tomorrow"},
    }
    error = refused_by(
        answer(status, json.dumps(problem_body).encode(), Content_Type=PROBLEM_MEDIA_TYPE, Retry_After="9")
    )
    assert isinstance(error, Refused)
    assert (str(error), error.code, error.problem.title) == ("Wait. (brand-new)", "brand-new", "New")
    assert (error.problem.status, error.transient, error.retry_after) == (status, transient, 9)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"title": "Quota", "status": 429}', b'{"code": "brand-new"}', b"[]"]
)
def test_the_problem_of_something_else(body: bytes) -> None:
    error = refused_by(answer(429, body, Content_Type=PROBLEM_MEDIA_TYPE))
    assert isinstance(error, Unreachable)
    assert "refused with 429 Too Many Requests and gave no reason" in str(error)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (502, "answered 502 Bad Gateway: the coordinator behind it does not answer"),
        (503, "answered 503 Service Unavailable: the coordinator behind it does not answer"),
        (504, "answered 504 Gateway Timeout: the coordinator behind it does not answer"),
        (522, "answered 522: the coordinator behind it does not answer"),
        (413, "it takes no body as long as this one; its operator must let bodies of up to 8 MiB through"),
        (403, "answered 403 Forbidden: it does not let this call through"),
        (429, "answered 429 Too Many Requests: it takes no more calls just now"),
        (501, "answered 501 Not Implemented"),
    ],
)
def test_what_a_proxy_answers_is_said_as_what_it_is(status: int, sentence: str) -> None:
    error = refused_by(answer(status, b"<html>", Content_Type="text/html"))
    assert isinstance(error, Unreachable)
    assert str(error).startswith("the proxy in front of http://127.0.0.1:")
    assert str(error).endswith(sentence)
    assert error.status == status
    assert error.transient == (status in {429, 502, 503, 504, 522})


def test_a_redirect_names_the_address_to_use() -> None:
    error = refused_by(answer(301, Location="https://elsewhere.example/"))
    assert not error.transient
    assert "points to https://elsewhere.example/" in str(error)


def test_retry_after_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    waited = refused_by(answer(503, Retry_After=soon)).retry_after
    assert waited is not None
    assert 7000 < waited <= 7200
    past = format_datetime(datetime.now(UTC) - timedelta(hours=2), usegmt=True)
    assert refused_by(answer(503, Retry_After=past)).retry_after == 0
    assert refused_by(answer(503, Retry_After="soon")).retry_after is None


@pytest.mark.parametrize("planned", [hang_up, cut(b"x" * 100, after=10)])
def test_a_cut_connection_is_a_passing_trouble(planned: Planned) -> None:
    error = refused_by(planned)
    assert isinstance(error, Unreachable)
    assert error.transient


def test_nobody_listens() -> None:
    with misbehaving() as server:
        pass
    with Http(server.url) as http, pytest.raises(Unreachable, match="no answer from http://127") as caught:
        http.request("GET", "/")
    assert caught.value.transient


def test_a_silent_coordinator_times_out() -> None:
    released = threading.Event()

    def silent(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        released.wait()
        handler.close_connection = True

    with misbehaving(silent) as server, Http(server.url, io_timeout=0.05) as http:
        with pytest.raises(Unreachable) as caught:
            http.request("GET", "/")
        released.set()
    assert caught.value.transient


@pytest.mark.parametrize("path", ["//elsewhere.example/v1", "https://elsewhere.example/v1", "v1"])
def test_the_key_never_goes_to_another_host(path: str) -> None:
    with misbehaving() as server, Http(server.url, "a-key") as http:
        with pytest.raises(Unreachable, match="no path on itself"):
            http.request("GET", path)
        assert server.asked == []


@pytest.mark.parametrize("url", ["coordinator", "ftp://host", "http://", "http://[::1", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(BadInput, match="no address"):
        Http(url)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", ""])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(BadInput, match="API key"):
        Http("http://localhost", key)


@pytest.mark.parametrize("kind", ["cut", "reset", "hole"])
def test_a_connection_lost_while_the_machine_slept_costs_one_try(kind: Kind) -> None:
    """A kept connection is dead after a sleep or under another address, told or not; the next call makes a new one."""
    with misbehaving(*[answer(200, b"awake")] * 3) as server, proxy(server.url) as line:
        with Http(line.url, io_timeout=0.2) as http:
            assert http.request("GET", "/").body == b"awake"
            line.faults.append(Fault(kind, "up", line.taken["up"] + 1))
            with pytest.raises(Unreachable) as caught:
                http.request("GET", "/")
            assert caught.value.transient
            assert http.request("GET", "/").body == b"awake"
        assert line.connections == 2


@pytest.mark.parametrize("date", ["Fri, 01 Jan 2100 00:00:00 GMT", "tomorrow"])
def test_the_coordinators_clock_is_known_from_its_answers(date: str) -> None:
    def dated(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        handler.send_response_only(204)
        handler.send_header("Date", date)
        handler.end_headers()

    with misbehaving(dated) as server, Http(server.url) as http:
        http.request("GET", "/v1/runs")
        ahead = datetime(2100, 1, 1, tzinfo=UTC).timestamp() - time.time() if date != "tomorrow" else 0.0
        assert http.clock_ahead == pytest.approx(ahead, abs=60)
