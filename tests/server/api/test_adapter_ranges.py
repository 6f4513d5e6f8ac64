"""HTTP ranges of a slice: which `Range` is served, which is ignored, which is refused (RFC 9110, section 14)."""

import pytest

from tests.support.databases import ON_SQLITE
from tests.support.kit import Served

pytestmark = ON_SQLITE  # bytes and files alone

PATH = "/v1/runs/run/rounds/0/adapter?rank=2"


@pytest.fixture
def whole(coordinator: Served) -> bytes:
    coordinator.run()
    content: bytes = coordinator.operator.expect(200, "GET", PATH).content
    return content


def test_satisfiable_ranges_are_served(coordinator: Served, whole: bytes) -> None:
    size = len(whole)
    contents = {
        "bytes=0-9": whole[:10],
        "BYTES=0-9": whole[:10],
        "bytes=10-": whole[10:],
        "bytes=-10": whole[-10:],
        f"bytes=-{size + 1}": whole,
        f"bytes=5-{'9' * 30}": whole[5:],
        f"bytes=0-1, {size}-": whole[:2],
        f"bytes=,-0,\t3-4 ,{size}-{size + 5}": whole[3:5],
    }
    for header, content in contents.items():
        response = coordinator.operator.call("GET", PATH, headers={"Range": header})
        assert (response.status_code, response.content) == (206, content), header
        assert response.headers["content-range"].endswith(f"/{size}")


def test_several_ranges_come_as_parts(coordinator: Served, whole: bytes) -> None:
    response = coordinator.operator.call("GET", PATH, headers={"Range": "bytes=0-1,5-6,9999999-"})
    assert response.status_code == 206
    assert response.headers["content-type"].startswith("multipart/byteranges")
    assert response.content.count(b"Content-Range: bytes ") == 2


NO_RANGES = (
    ["items=0-1", "x", "bytes", "bytes=", "bytes=-", "bytes=,", "bytes=a-b", "bytes=5-2", "bytes=0-1,x", "bytes=0-1,5-2",
     "bytes =0-1", "bytes=+1-2", "bytes=1_0-20", "bytes=0 - 1", "bytes=" + "9" * 5000 + "-", "bytes=0-1-2"]
)  # fmt: skip


def test_what_is_no_byte_range_is_ignored(coordinator: Served, whole: bytes) -> None:
    for header in NO_RANGES:
        response = coordinator.operator.call("GET", PATH, headers={"Range": header})
        assert (response.status_code, response.content) == (200, whole), header[:20]
        assert response.headers["content-type"] == "application/octet-stream"


def test_ranges_beyond_the_file_are_refused(coordinator: Served, whole: bytes) -> None:
    for header in ("bytes=-0", "bytes=-00", "bytes=9999999-", "bytes=9999999-,-0", "Bytes=9999999-"):
        body = coordinator.operator.problem("range-not-satisfiable", "GET", PATH, headers={"Range": header})
        assert body["context"] == {"size": len(whole)}, header
        response = coordinator.operator.call("GET", PATH, headers={"Range": header})
        assert response.headers["content-range"] == f"bytes */{len(whole)}", header


def test_if_range_must_be_the_etag(coordinator: Served, whole: bytes) -> None:
    head = coordinator.operator.expect(200, "HEAD", PATH).headers
    tag = head["etag"]
    for header in (f"W/{tag}", '"other"', head["last-modified"], tag.strip('"')):
        for spans in ("bytes=0-1", "bytes=9999999-", "bytes=x"):
            response = coordinator.operator.call("GET", PATH, headers={"Range": spans, "If-Range": header})
            assert (response.status_code, response.content) == (200, whole), (header, spans)
    response = coordinator.operator.call("GET", PATH, headers={"Range": "bytes=0-1", "If-Range": tag})
    assert (response.status_code, response.content) == (206, whole[:2])


def test_head_tells_etag_and_length(coordinator: Served, whole: bytes) -> None:
    got = coordinator.operator.expect(200, "GET", PATH).headers
    for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=9999999-"}):
        response = coordinator.operator.expect(200, "HEAD", PATH, headers=headers)
        assert response.content == b""
        assert response.headers["content-length"] == str(len(whole))
        assert response.headers["etag"] == got["etag"]
    coordinator.operator.expect(304, "HEAD", PATH, headers={"If-None-Match": got["etag"]})
    assert coordinator.operator.call("HEAD", "/v1/runs/none/rounds/0/adapter?rank=2").status_code == 404
