"""Slices that lie on another host: fetched by the coordinator's link, without the key, resumed, checked as ever."""

from pathlib import Path

import pytest

from flexlora_client.agent.download import MAX_DAMAGED_ATTEMPTS, download
from flexlora_client.agent.slice_cache import CachedSlice, SliceCache
from flexlora_client.coordinator_api import presigned
from flexlora_client.coordinator_api.rate import NO_LIMIT
from flexlora_client.coordinator_api.tls import Tls
from flexlora_client.errors import ClientError, Corrupted, Unreachable
from flexlora_client.training.contract import ADAPTER_FILE
from tests.support.connecting import Waits, connect
from tests.support.misbehaving import Misbehaving, Planned, answer, cut, misbehaving
from tests.support.served_slices import DATA, ETAG, SHA256, config, slice_request

STORAGE_ETAG = '"of-the-storage"'  # an object's tag there is not its SHA-256


def link(storage: Misbehaving, signature: str = "first") -> Planned:
    """The coordinator's answer that names where the slice lies."""
    return answer(307, ETag=ETAG, Location=f"{storage.url}/bucket/slice?signature={signature}")


def rest(begin: int) -> Planned:
    return answer(206, DATA[begin:], ETag=STORAGE_ETAG)


def fetch(coordinator: Misbehaving, folder: Path, *, known: bool = True, waits: Waits | None = None) -> CachedSlice:
    with connect(coordinator.url, waits or Waits(), 5) as api:
        fetched = download(api, SliceCache(folder), slice_request(known=known), lambda done, total: None)
    assert (fetched.folder / ADAPTER_FILE).read_bytes() == DATA
    assert coordinator.plan == []
    return fetched


@pytest.mark.parametrize("known", [True, False])
def test_the_link_is_followed_without_the_key(tmp_path: Path, known: bool) -> None:
    with misbehaving(answer(200, DATA, ETag=STORAGE_ETAG)) as storage, misbehaving(link(storage), config()) as server:
        fetched = fetch(server, tmp_path, known=known)
        assert fetched == CachedSlice(tmp_path / SHA256, SHA256, len(DATA), len(DATA))
        assert server.asked[0].headers["authorization"] == "Bearer a-key"
        [asked] = storage.asked
        assert asked.path == "/bucket/slice?signature=first"
        assert "authorization" not in asked.headers
        assert not any("flexlora" in f"{name} {value}".lower() for name, value in asked.headers.items())
        assert "range" not in asked.headers


def test_after_a_cut_only_the_rest_is_fetched_by_a_fresh_link(tmp_path: Path) -> None:
    with (
        misbehaving(cut(DATA, after=100, ETag=STORAGE_ETAG), rest(100)) as storage,
        misbehaving(link(storage), link(storage, "second"), config()) as server,
    ):
        assert fetch(server, tmp_path).fetched == len(DATA)
        assert storage.asked[1].headers["range"] == "bytes=100-"
        assert "if-range" not in storage.asked[1].headers
        assert storage.asked[1].path.endswith("signature=second")


@pytest.mark.parametrize("status", [403, 404, 500, 503, 302])
def test_a_link_the_storage_does_not_take_is_asked_for_again(tmp_path: Path, status: int) -> None:
    refused = answer(status, b"<Error/>", Retry_After="3")
    waits = Waits()
    with (
        misbehaving(refused, answer(200, DATA)) as storage,
        misbehaving(link(storage), link(storage, "second"), config()) as server,
    ):
        fetch(server, tmp_path, waits=waits)
        assert storage.asked[1].path.endswith("signature=second")
        assert waits.slept == [4.0]
        assert f"{storage.url} answered {status}" in str(waits.reasons[0])
        assert "signature" not in str(waits.reasons[0])


def test_a_storage_that_ignores_ranges_starts_over(tmp_path: Path) -> None:
    with (
        misbehaving(cut(DATA, after=100), answer(200, DATA)) as storage,
        misbehaving(link(storage), link(storage), config()) as server,
    ):
        assert fetch(server, tmp_path).fetched == len(DATA) + 100


def test_more_than_the_storage_has_starts_over(tmp_path: Path) -> None:
    partial = tmp_path / f"{SHA256}.partial"
    partial.mkdir()
    (partial / ADAPTER_FILE).write_bytes(DATA + b"too much")
    with (
        misbehaving(answer(416, b"<Error/>"), answer(200, DATA)) as storage,
        misbehaving(link(storage), link(storage), config()) as server,
    ):
        assert fetch(server, tmp_path).fetched == len(DATA)
        assert "range" not in storage.asked[1].headers


def refused(folder: Path, *plan: Planned) -> ClientError:
    with misbehaving(*plan) as server, connect(server.url, Waits(), None) as api:
        with pytest.raises((Corrupted, Unreachable)) as caught:
            download(api, SliceCache(folder), slice_request(), lambda done, total: None)
        assert server.plan == []
    assert not any(path.name == SHA256 for path in folder.iterdir())
    return caught.value


def test_wrong_bytes_of_the_storage_are_never_used(tmp_path: Path) -> None:
    wrong = answer(200, DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with misbehaving(*[wrong] * MAX_DAMAGED_ATTEMPTS) as storage:
        error = refused(tmp_path, *[link(storage)] * MAX_DAMAGED_ATTEMPTS)
    assert f"instead of {SHA256}" in str(error)


@pytest.mark.parametrize(
    "location",
    [
        "ftp://host/slice",
        "file:///etc/passwd",
        "/v1/runs",
        "//host/slice",
        "",
        "http://",
        "http://[::1",
        "http://a:b@c/d",
    ],
)
def test_what_is_no_link_is_not_followed(tmp_path: Path, location: str) -> None:
    error = refused(tmp_path, answer(307, ETag=ETAG, Location=location))
    assert "the coordinator's link" in str(error)
    assert not error.transient


def test_a_storage_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with misbehaving() as gone:
        pass
    waits = Waits()
    with (
        misbehaving(answer(200, DATA)) as storage,
        misbehaving(link(gone), link(storage), config()) as server,
    ):
        fetch(server, tmp_path, waits=waits)
        assert f"no answer from {gone.url}" in str(waits.reasons[0])


def test_a_coordinator_of_https_gives_no_link_in_the_clear() -> None:
    with misbehaving() as storage:
        clear = presigned.stream_presigned(
            f"{storage.url}/slice?signature=first", 0, Tls(), 5, NO_LIMIT, encrypted=True
        )
        with pytest.raises(Unreachable, match="must give the storage's public address with https") as caught, clear:
            pass
    assert not caught.value.transient
    assert "signature" not in str(caught.value)
