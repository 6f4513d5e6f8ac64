"""Proxies that the environment names: HTTP in absolute form, HTTPS through a tunnel, and hosts that need none."""

import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.tls import Tls, read_authorities
from flexlora_client.errors import Unreachable
from tests.support.certificates import make_authority, server_context
from tests.support.misbehaving import Asked, answer, misbehaving


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def tunnel(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    """What a proxy does of CONNECT: bytes both ways, unseen."""
    host, port = asked.path.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as far:
        handler.send_response(200)
        handler.end_headers()
        back = threading.Thread(target=relay, args=(far, handler.connection))
        back.start()
        relay(handler.connection, far)
        back.join()
    handler.close_connection = True


def test_http_goes_to_the_proxy_and_hosts_of_no_proxy_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with misbehaving(answer(200, b"proxied")) as proxy, misbehaving(answer(200, b"direct")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Http("http://coordinator.example") as http:
            assert http.request("GET", "/v1/runs").body == b"proxied"
        assert proxy.asked[0].path == "http://coordinator.example/v1/runs"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with Http(server.url) as http:
            assert http.request("GET", "/v1/runs").body == b"direct"


def test_https_goes_through_a_tunnel_that_sees_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    context = server_context(authority.sign("localhost"))
    with misbehaving(answer(200, b"hello"), tls=context) as server, misbehaving(tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with Http(server.url, "a-key", Tls(read_authorities(authority.file))) as http:
            assert http.request("GET", "/v1/runs").body == b"hello"
        assert [(asked.method, asked.headers.get("authorization")) for asked in proxy.asked] == [("CONNECT", None)]


@pytest.mark.parametrize(("status", "transient"), [(407, False), (403, False), (502, True)])
def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch, status: int, transient: bool) -> None:
    with misbehaving(answer(status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with Http("https://coordinator.example") as http, pytest.raises(Unreachable) as caught:
            http.request("GET", "/v1/runs")
    assert f"the proxy that this machine's settings name answered {status}" in str(caught.value)
    assert "NO_PROXY" in str(caught.value)
    assert caught.value.transient == transient
