"""Announcing an update and sending its parts; what is inside it is in `test_upload_contents`."""

import hashlib
from typing import Any

import pytest
import torch

from flexlora_server.api.receive_part import MAX_PART_BYTES
from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import PART, Served, encode, part, tensors
from tests.support.sending import BIG, offset, put

pytestmark = MOSTLY_ON_SQLITE


def test_parts_add_up(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    assert put(participant, upload, data[:1000], 0) == (204, 1000)
    assert put(participant, upload, b"", 1000) == (204, 1000)
    assert put(participant, upload, data[1000:1001], 1000) == (204, 1001)
    head = participant.expect(204, "HEAD", f"/v1/uploads/{upload}").headers
    assert (head["upload-complete"], head["upload-length"]) == ("?0", str(len(data)))
    assert head["cache-control"] == "no-store"
    assert put(participant, upload, data[1001:], 1001, last=True) == (204, len(data))
    assert participant.expect(204, "HEAD", f"/v1/uploads/{upload}").headers["upload-complete"] == "?1"
    receipt = participant.commit(upload)
    assert receipt["sha256"] == hashlib.sha256(data).hexdigest()
    assert participant.commit(upload) == receipt
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 1
    coordinator.check_storage()


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_offset_gets_the_right_one(coordinator: Served, wrong: int) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    assert put(participant, upload, data[:1000], 0) == (204, 1000)
    rest, path = data[1000 + wrong :], f"/v1/uploads/{upload}"
    body = participant.problem("offset-mismatch", "PATCH", path, headers=part(rest, 1000 + wrong), content=rest)
    assert body["context"] == {"offset": 1000}
    assert put(participant, upload, b"x", 1000 + wrong) == (409, 1000)
    participant.send(upload, data, 1000)
    participant.commit(upload)


def test_malformed_part_headers(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    for headers in (
        {},
        {"Upload-Offset": "-1"},
        {"Upload-Offset": "x"},
        {"Upload-Offset": str(2**46)},
        {"Upload-Offset": "0", "Upload-Complete": "true"},
        {"Upload-Offset": "0", "Content-Digest": ""},
        {"Upload-Offset": "0", "Content-Digest": "md5=:AAAA:"},
        {"Upload-Offset": "0", "Content-Digest": "sha-256=:AAAA:"},
        {"Upload-Offset": "0", "Content-Digest": "sha-256=" + "0" * 64},
    ):
        part_headers = {"Content-Digest": part(b"x", 0)["Content-Digest"]} | PART | headers
        participant.problem("invalid-request", "PATCH", f"/v1/uploads/{upload}", headers=part_headers, content=b"x")
        assert offset(participant, upload) == 0


def test_the_last_part_must_be_the_last(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    path = f"/v1/uploads/{upload}"
    headers = part(data[:-1], 0, True)
    body = participant.problem("upload-incomplete", "PATCH", path, headers=headers, content=data[:-1])
    assert body["context"] == {"offset": len(data) - 1}
    participant.send(upload, data, len(data) - 1)
    participant.commit(upload)


def test_more_bytes_than_announced(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    path = f"/v1/uploads/{upload}"
    participant.problem("too-large", "PATCH", path, headers=part(data + b"x", 0), content=data + b"x")
    participant.send(upload, data, offset(participant, upload))
    participant.problem("too-large", "PATCH", path, headers=part(b"x", len(data)), content=b"x")
    participant.commit(upload)


def test_a_part_holds_at_most_8_mib(coordinator: Served) -> None:
    module = BIG | {"out_features": 300_000, "in_features": 300_000}
    participant, task, data = coordinator.working(modules=[module], norm_bound=1e9)
    assert len(data) > MAX_PART_BYTES == 8 << 20
    upload = participant.announce(task, data)["id"]
    path = f"/v1/uploads/{upload}"
    large = data[: MAX_PART_BYTES + 1]
    participant.problem("too-large", "PATCH", path, headers=part(large, 0), content=large)
    sent = offset(participant, upload)
    assert sent <= MAX_PART_BYTES
    while sent < len(data):
        status, sent = put(participant, upload, data[sent : sent + MAX_PART_BYTES], sent)
        assert status == 204
    assert participant.commit(upload)["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_same_announcement_finds_the_open_upload(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    first = participant.announce(task, data)
    put(participant, first["id"], data[:1000], 0)
    assert participant.announce(task, data) == first | {"offset": 1000}


def test_another_announcement_replaces_the_open_upload(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    first = participant.announce(task, data)["id"]
    put(participant, first, data[:1000], 0)
    second = participant.announce(task, data, examples=9)["id"]
    assert second != first
    assert put(participant, first, data[1000:], 1000)[0] == 404
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{first}/commit")
    participant.send(second, data)
    assert participant.commit(second)["upload_id"] == second
    coordinator.check_storage()


def test_somebody_elses_upload_does_not_exist(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    other = coordinator.enroll("other")
    path = f"/v1/uploads/{upload}"
    assert other.call("HEAD", path).status_code == 404
    other.problem("upload-not-found", "PATCH", path, headers=part(b"x", 0), content=b"x")
    other.problem("upload-not-found", "DELETE", path)
    other.problem("upload-not-found", "PUT", f"{path}/commit")
    coordinator.operator.problem("forbidden", "PUT", f"{path}/commit")
    participant.commit(upload)


def test_announcements_are_bounded_by_the_runs_shapes(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    sizes: dict[str, Any] = {"tiny": 1, "huge": 2**45}
    for size in sizes.values():
        announcement = {"rank": 8, "alpha": 1.0, "examples": 1, "size": size, "sha256": "0" * 64}
        body = participant.problem("size-impossible", "POST", "/v1/runs/run/rounds/1/uploads", json=announcement)
        assert body["context"]["least"] < len(data) < body["context"]["most"]
    announcement = {
        "rank": 8,
        "alpha": 1.0,
        "examples": 1,
        "size": len(data),
        "sha256": "0" * 64,
        "alpha_pattern": {"x": 1.0},
    }
    participant.problem("invalid-request", "POST", "/v1/runs/run/rounds/1/uploads", json=announcement)
    halves = encode(tensors(coordinator.spec("run"), 8), torch.float16)
    participant.upload(task, halves)
