"""Sending an update: parts, cuts, repeats and refusals; what is inside it is in `test_upload_contents`."""

import asyncio
import errno
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.requests import Request
from starlette.types import Message

from flexlora_server.app import create_app
from flexlora_server.blobs import digest
from flexlora_server.blobs.appending import Appending, append, hold
from flexlora_server.errors import Refusal
from flexlora_server.routes import receiving
from flexlora_server.routes import uploads as upload_routes
from flexlora_server.routes.receiving import BUFFER, PART_LIMIT
from tests.kit import PART, Participant, Served, encode, part, part_head, raw_answer, raw_request, served, tensors

BIG = {"name": "big", "out_features": 80_000, "in_features": 80_000}  # 8 ranks of it take 5.1 MB, more than one buffer


def put(participant: Participant, upload: str, data: bytes, offset: int, last: bool = False) -> tuple[int, int]:
    """Send one part; the status and where the upload ends now by the answer's header."""
    response = participant.call("PATCH", f"/v1/uploads/{upload}", headers=part(data, offset, last), content=data)
    return response.status_code, int(response.headers.get("upload-offset", -1))


def offset(participant: Participant, upload: str) -> int:
    return int(participant.expect(204, "HEAD", f"/v1/uploads/{upload}").headers["upload-offset"])


def begun(coordinator: Served, upload: str, size: int = 0) -> None:
    """Wait until the request in progress has this many bytes on the disk."""
    path = coordinator.settings.data_dir / "partial" / upload
    while not path.exists() or path.stat().st_size < size:
        coordinator.http.get("/healthz")


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


def test_a_cut_in_the_middle_of_a_part_keeps_what_came(coordinator: Served) -> None:
    participant, task, data = coordinator.working(modules=[BIG], norm_bound=1e9)
    upload = participant.announce(task, data)["id"]
    sent = 0
    for cut in (1_500_000, 2_500_000):
        connection = raw_request(coordinator.url, part_head(upload, data[sent:], sent), participant.key)
        connection.sendall(data[sent : sent + cut])
        begun(coordinator, upload, sent + (1 << 20))
        connection.close()
        while (kept := offset(participant, upload)) == sent:
            pass
        assert sent + (1 << 20) <= kept <= sent + cut
        sent = kept
    while put(participant, upload, data[sent:], sent, last=True)[0] == 409:  # the cut request may still be ending
        pass
    assert participant.commit(upload)["sha256"] == hashlib.sha256(data).hexdigest()
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


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Offset": "-1"},
        {"Upload-Offset": "x"},
        {"Upload-Offset": str(2**46)},
        {"Upload-Offset": "0", "Upload-Complete": "true"},
        {"Upload-Offset": "0", "Content-Digest": ""},
        {"Upload-Offset": "0", "Content-Digest": "md5=:AAAA:"},
        {"Upload-Offset": "0", "Content-Digest": "sha-256=:AAAA:"},
        {"Upload-Offset": "0", "Content-Digest": "sha-256=" + "0" * 64},
    ],
    ids=str,
)
def test_malformed_part_headers(coordinator: Served, headers: dict[str, str]) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    told = {"Content-Digest": part(b"x", 0)["Content-Digest"]} | PART | headers
    participant.problem("invalid-request", "PATCH", f"/v1/uploads/{upload}", headers=told, content=b"x")
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
    assert len(data) > PART_LIMIT == 8 << 20
    upload = participant.announce(task, data)["id"]
    path = f"/v1/uploads/{upload}"
    large = data[: PART_LIMIT + 1]
    participant.problem("too-large", "PATCH", path, headers=part(large, 0), content=large)
    sent = offset(participant, upload)
    assert sent <= PART_LIMIT
    while sent < len(data):
        status, sent = put(participant, upload, data[sent : sent + PART_LIMIT], sent)
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
    second = participant.announce(task, data, examples=11)["id"]
    assert second != first
    assert put(participant, first, data[1000:], 1000)[0] == 404
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{first}/commit")
    participant.send(second, data)
    assert participant.commit(second)["upload_id"] == second
    coordinator.check_storage()


def test_a_replaced_upload_ends_under_its_writer(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    first = participant.announce(task, data)["id"]
    connection = raw_request(coordinator.url, part_head(first, data), participant.key)
    connection.sendall(data[:1000])
    begun(coordinator, first)
    second = participant.announce(task, data, examples=11)["id"]
    connection.sendall(data[1000:])
    status, body = raw_answer(connection)
    assert (status, body["code"]) == (404, "upload-not-found")
    participant.send(second, data)
    participant.commit(second)
    coordinator.check_storage()


def test_cancel(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    participant.expect(204, "DELETE", f"/v1/uploads/{upload}")
    assert list((coordinator.settings.data_dir / "partial").iterdir()) == []
    participant.problem("upload-not-found", "DELETE", f"/v1/uploads/{upload}")
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")
    assert participant.upload(task, data)["upload_id"] != upload


def test_an_accepted_update_is_final(coordinator: Served) -> None:
    participant, task, data = coordinator.working(min_updates=1)
    other = coordinator.enrol("other")
    receipt = participant.upload(task, data)
    upload = receipt["upload_id"]
    assert put(participant, upload, b"", len(data))[0] == 409
    participant.problem("already-accepted", "DELETE", f"/v1/uploads/{upload}")
    again = participant.announce(task, data)
    assert (again["id"], again["state"]) == (upload, "ACCEPTED")
    announced = {"rank": 8, "alpha": 16.0, "examples": 10, "size": len(data), "sha256": "0" * 64}
    participant.problem("already-accepted", "POST", "/v1/runs/run/rounds/1/uploads", json=announced)
    coordinator.work()
    assert participant.commit(upload) == receipt  # whatever became of the round since
    other.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")


def test_late_uploads_are_gone(coordinator: Served) -> None:
    """Late is late on each path, once the round aggregates without it."""
    run = coordinator.run(min_clients=2)
    participant, other = coordinator.enrol(), coordinator.enrol()
    for one in (participant, other):
        one.declare("run", 8)
    task, data = participant.task("run"), encode(tensors(run, 8))
    upload = participant.announce(task, data)["id"]
    put(participant, upload, data[:1000], 0)
    other.upload(other.task("run"), data)
    coordinator.clock.advance(100)
    announced = {"rank": 8, "alpha": 16.0, "examples": 10, "size": len(data), "sha256": "0" * 64}
    participant.problem("round-closed", "POST", "/v1/runs/run/rounds/1/uploads", json=announced)
    while not coordinator.work():  # the deadline is seen by the coordinator's own clock
        pass
    participant.problem("round-closed", "PUT", f"/v1/uploads/{upload}/commit")
    participant.problem("round-closed", "DELETE", f"/v1/uploads/{upload}")
    rest = data[1000:]
    participant.problem("round-closed", "PATCH", f"/v1/uploads/{upload}", headers=part(rest, 1000), content=rest)
    coordinator.check_storage()
    assert not (coordinator.settings.data_dir / "partial" / upload).exists()


def test_cancelling_the_run_ends_its_uploads(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    participant.problem("round-closed", "PUT", f"/v1/uploads/{upload}/commit")
    coordinator.check_storage()
    assert list((coordinator.settings.data_dir / "partial").iterdir()) == []


def test_somebody_elses_upload_does_not_exist(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    other = coordinator.enrol("other")
    path = f"/v1/uploads/{upload}"
    assert other.call("HEAD", path).status_code == 404
    other.problem("upload-not-found", "PATCH", path, headers=part(b"x", 0), content=b"x")
    other.problem("upload-not-found", "DELETE", path)
    other.problem("upload-not-found", "PUT", f"{path}/commit")
    coordinator.operator.problem("forbidden", "PUT", f"{path}/commit")
    participant.commit(upload)


def test_a_revoked_client_cannot_go_on(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{participant.client_id}")
    participant.problem("unauthenticated", "PUT", f"/v1/uploads/{upload}/commit")
    participant.problem("unauthenticated", "POST", "/v1/clients/me/keys")
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 0


def test_a_rotated_key_ends_when_the_new_one_is_used(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    old = participant.key
    lost, fresh = (participant.expect(201, "POST", "/v1/clients/me/keys")["api_key"] for _ in range(2))
    participant.expect(200, "GET", "/v1/runs")
    participant.key = fresh
    participant.upload(task, data)
    for ended in (old, lost):
        participant.key = ended
        participant.problem("unauthenticated", "GET", "/v1/runs")


def test_revoking_ends_every_key(coordinator: Served) -> None:
    participant = coordinator.enrol()
    unused = participant.expect(201, "POST", "/v1/clients/me/keys")["api_key"]
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{participant.client_id}")
    for ended in (participant.key, unused):
        participant.key = ended
        participant.problem("unauthenticated", "POST", "/v1/clients/me/keys")


def test_racing_commits_count_once(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: participant.call("PUT", f"/v1/uploads/{upload}/commit"), range(16)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 409}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"upload-busy"}
    assert len({answer.text for answer in answers if answer.status_code == 200}) == 1
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 1


def test_a_commit_and_a_cancellation_race(coordinator: Served) -> None:
    """Either the update counts and stays, or it is gone: never both."""
    participant, task, data = coordinator.working(rounds=50)
    run = "/v1/runs/run/rounds/1"
    for examples in range(1, 13):
        upload = participant.announce(task, data, examples=examples)["id"]
        participant.send(upload, data)
        with ThreadPoolExecutor(2) as pool:
            committing = pool.submit(participant.call, "PUT", f"/v1/uploads/{upload}/commit")
            cancelling = pool.submit(participant.call, "DELETE", f"/v1/uploads/{upload}")
        commit, cancel = committing.result().status_code, cancelling.result().status_code
        assert (commit == 200) != (cancel == 204), (commit, cancel)
        accepted = coordinator.operator.expect(200, "GET", run)["summary"]["participants"]["accepted"]
        assert accepted == (commit == 200)
        if accepted:
            return


def test_a_commit_cut_short_after_the_bytes_moved_can_be_repeated(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    sha256 = hashlib.sha256(data).hexdigest()
    with coordinator.blobs.incoming.gathered(upload, (), sha256) as path:
        coordinator.blobs.keep(path, sha256)  # and the process died here
    assert put(participant, upload, b"", len(data), last=True) == (204, len(data))
    assert participant.commit(upload)["upload_id"] == upload
    coordinator.check_storage()


def test_two_participants_may_send_the_same_bytes(coordinator: Served) -> None:
    run = coordinator.run(min_clients=2, min_updates=2)
    both = [coordinator.enrol(name) for name in ("one", "two")]
    for participant in both:
        participant.declare("run", 8)
    data = encode(tensors(run, 8))
    receipts = [participant.upload(participant.task("run"), data) for participant in both]
    assert receipts[0]["upload_id"] != receipts[1]["upload_id"]
    assert coordinator.work() == 1
    assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
    coordinator.check_storage()


def test_announcements_are_bounded_by_the_runs_shapes(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    sizes: dict[str, Any] = {"tiny": 1, "huge": 2**45}
    for size in sizes.values():
        told = {"rank": 8, "alpha": 1.0, "examples": 1, "size": size, "sha256": "0" * 64}
        body = participant.problem("size-impossible", "POST", "/v1/runs/run/rounds/1/uploads", json=told)
        assert body["context"]["least"] < len(data) < body["context"]["most"]
    told = {"rank": 8, "alpha": 1.0, "examples": 1, "size": len(data), "sha256": "0" * 64, "alpha_pattern": {"x": 1.0}}
    participant.problem("invalid-request", "POST", "/v1/runs/run/rounds/1/uploads", json=told)
    halves = encode(tensors(coordinator.spec("run"), 8), torch.float16)
    participant.upload(task, halves)


class SlowDisk(BytesIO):
    """A file whose first write waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, data: Any) -> int:
        self.begun.set()
        assert self.go_on.wait(60)
        return super().write(data)


def test_a_request_cancelled_while_it_writes_wrote_each_byte_once() -> None:
    """As at a shutdown: the task is cancelled, twice, while a thread writes."""
    file, data = SlowDisk(), bytes(range(256)) * (BUFFER // 256)

    async def receive() -> Message:
        return {"type": "http.request", "body": data, "more_body": True}

    async def cancelled() -> None:
        request = Request({"type": "http", "headers": []}, receive)
        task = asyncio.create_task(receiving.stream(request, file, 2 * BUFFER, 0))
        await asyncio.to_thread(file.begun.wait, 60)
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task], timeout=0)
        assert not task.done()  # the write is waited for
        file.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert file.getvalue() == 2 * data  # the second buffer came while the first was written


def test_processes_on_one_folder_exclude_each_other(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    with served(coordinator.store, coordinator.settings.data_dir, coordinator.clock) as second:
        there = Participant(second.http, participant.key)
        connection = raw_request(coordinator.url, part_head(upload, data), participant.key)
        connection.sendall(data[:100])
        begun(coordinator, upload)
        path, at = f"/v1/uploads/{upload}", part(data, 0)
        there.problem("upload-busy", "PUT", f"{path}/commit")
        there.problem("upload-busy", "PATCH", path, headers=at, content=data)
        connection.sendall(data[100:])
        assert raw_answer(connection)[0] == 204
        there.commit(upload)
    assert coordinator.blobs.path(hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_a_part_looks_at_its_upload_again_once_it_holds_the_bytes(coordinator: Served) -> None:
    """Another process went on, or committed, after the row was read: nothing is cut off, nothing left behind."""
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    running = create_app(coordinator.settings, coordinator.store).state.coordinator
    old = upload_routes._writable(running, upload, participant.client_id, 0)
    put(participant, upload, data[:1000], 0)
    with pytest.raises(Refusal, match="the upload ends at 1000"):
        upload_routes._opened(running, old)
    participant.send(upload, data, 1000)
    participant.commit(upload)
    with pytest.raises(Refusal, match="was accepted"):
        upload_routes._opened(running, old)
    assert coordinator.blobs.incoming.ids() == []


def test_missing_bytes_are_never_made_up(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"1234")
    with hold(path) as file:
        with pytest.raises(OSError, match="only 4 are there"):
            append(file, 5)
        append(file, 3)
    assert path.read_bytes() == b"123"


class FullDisk(BytesIO):
    """A file that refuses its second write, and would take the third."""

    writes = 0

    def write(self, data: Any) -> int:
        self.writes += 1
        if self.writes == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_what_follows_bytes_that_the_disk_refused_is_not_written() -> None:
    file, sent = FullDisk(), iter([bytes(BUFFER), b"1" * BUFFER, b"2" * BUFFER, b"3" * BUFFER])

    async def receive() -> Message:
        return {"type": "http.request", "body": next(sent), "more_body": True}

    async def received() -> None:
        await receiving.stream(Request({"type": "http", "headers": []}, receive), file, 9 * BUFFER, 0)

    with pytest.raises(OSError, match="No space"):
        asyncio.run(received())
    assert file.getvalue() == bytes(BUFFER)


def test_bytes_that_vanish_in_a_commit_are_explained_by_the_row(
    coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)

    def late(path: Path) -> str:
        participant.expect(204, "DELETE", f"/v1/uploads/{upload}")
        return digest(path)

    monkeypatch.setattr("flexlora_server.submission.digest", late)
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")


def test_a_part_without_bytes_is_not_waited_for_either(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    monkeypatch.setattr(receiving, "GRACE", 0.2)
    connection = raw_request(coordinator.url, part_head(upload, bytes(10), len(data)), participant.key)
    status, body = raw_answer(connection)
    assert (status, body["code"]) == (408, "too-slow")
    participant.commit(upload)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_damaged_part_is_not_acknowledged_where_it_cannot_be_cut_off(
    coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]

    def broken(*given: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path, headers = f"/v1/uploads/{upload}", part(data[:1000], 0)
    with monkeypatch.context() as patch:
        patch.setattr(Appending, "undo", broken)
        participant.problem("part-digest-mismatch", "PATCH", path, headers=headers, content=bytes(1000))
    assert offset(participant, upload) == 0
    participant.send(upload, data)
    participant.commit(upload)


def test_bytes_that_are_lost_are_sent_again(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    path = coordinator.settings.data_dir / "partial" / upload
    for left in (400, 0):
        assert put(participant, upload, data[:1000], offset(participant, upload))[0] == 204
        path.write_bytes(data[:left])
        assert put(participant, upload, data[1000:], offset(participant, upload)) == (409, left)
    participant.send(upload, data)
    path.unlink()
    participant.problem("upload-incomplete", "PUT", f"/v1/uploads/{upload}/commit")
    participant.send(upload, data)
    participant.commit(upload)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_cancellation_stands_where_the_bytes_cannot_be_deleted(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    (coordinator.settings.data_dir / "partial" / upload).mkdir()  # nothing that could be unlinked
    participant.expect(204, "DELETE", f"/v1/uploads/{upload}")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_slice_that_is_missing_or_short_is_a_fault_of_the_storage(coordinator: Served) -> None:
    participant, task, _ = coordinator.working()
    path = coordinator.blobs.path(task["adapter"]["sha256"])
    path.write_bytes(b"short")
    participant.problem("unavailable", "GET", task["adapter"]["href"])
    path.unlink()
    participant.problem("unavailable", "GET", task["adapter"]["href"])
