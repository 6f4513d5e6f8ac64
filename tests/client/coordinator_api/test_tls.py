"""TLS: authorities, client certificates, and a sentence for each way in which a certificate is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.tls import Tls, read_authorities
from flexlora_client.errors import BadInput, Unreachable
from tests.support.certificates import Authority, make_authority, server_context
from tests.support.misbehaving import answer, misbehaving


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def coordinator(certificate: Path, asks_for: Path | None = None) -> Iterator[str]:
    """The address of an HTTPS server that answers three calls with 204."""
    with misbehaving(*[answer(204)] * 3, tls=server_context(certificate, asks_for)) as server:
        yield server.url


def fault(url: str, tls: Tls) -> str:
    """The sentence of the error, which is not to be tried again."""
    with Http(url, tls=tls) as http, pytest.raises(Unreachable) as caught:
        http.request("GET", "/")
    assert not caught.value.transient
    return str(caught.value)


def test_the_given_authority_is_trusted_and_the_systems_are_not(authority: Authority) -> None:
    with coordinator(authority.sign("localhost")) as url:
        tls = Tls(read_authorities(authority.file))
        with Http(url, tls=tls) as trusting:
            assert trusting.request("GET", "/").status == 204
            with trusting.stream_presigned(f"{url}/link", 0) as response:
                assert response.status == 204
        assert "does not know; if its operator runs an authority of their own" in fault(url, Tls())
        with (
            Http(url) as doubting,
            pytest.raises(Unreachable, match=r"where the adapter lies: .*--ca-file") as caught,
            doubting.stream_presigned(f"{url}/link", 0),
        ):
            pass
        assert not caught.value.transient


@pytest.mark.parametrize(
    ("name", "days", "sentence"),
    [
        ("localhost", (-30, -1), "has expired; check this machine's clock"),
        ("localhost", (1, 30), "is not valid yet; check this machine's clock"),
        ("elsewhere.example", (-1, 30), "is for another name; use the address that the certificate names"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(
    authority: Authority, name: str, days: tuple[int, int], sentence: str
) -> None:
    with coordinator(authority.sign(name, days)) as url:
        assert sentence in fault(url, Tls(read_authorities(authority.file)))


def test_an_https_address_of_a_server_without_tls() -> None:
    with misbehaving() as server:
        url = server.url.replace("http://", "https://")
        assert "answers without TLS" in fault(url, Tls())


def test_a_client_certificate_is_shown_to_who_asks(authority: Authority) -> None:
    trusted = read_authorities(authority.file)
    with coordinator(authority.sign("localhost"), asks_for=authority.file) as url:
        own = authority.sign("participant")
        with Http(url, tls=Tls(trusted, own)) as http:
            assert http.request("GET", "/").status == 204
        assert "give --client-cert" in fault(url, Tls(trusted))


def test_files_that_hold_no_certificates(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read certificates from .*missing.pem: No such file"):
        read_authorities(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("nothing\n")
    with pytest.raises(BadInput, match="cannot read certificates from"):
        read_authorities(tmp_path / "empty.pem")
    with pytest.raises(BadInput, match=r"cannot use the client certificate in .*empty.pem"):
        Http("https://localhost", tls=Tls(certificate=tmp_path / "empty.pem"))
