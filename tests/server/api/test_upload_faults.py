"""Uploads that are cut, raced or lose their bytes: what came is kept, what is lost is sent again."""

import errno
import hashlib
from pathlib import Path

import pytest

from flexlora_server.api import receive_part
from flexlora_server.api import uploads as upload_routes
from flexlora_server.app import create_app
from flexlora_server.errors import Refusal
from flexlora_server.storage import digest
from flexlora_server.storage.local_uploads import LocalUploads
from tests.support.databases import MOSTLY_ON_SQLITE
from tests.support.kit import Participant, Served, part, part_head, raw_answer, raw_request, served
from tests.support.sending import BIG, begun, offset, put


@MOSTLY_ON_SQLITE
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


def test_a_replaced_upload_ends_under_its_writer(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    first = participant.announce(task, data)["id"]
    connection = raw_request(coordinator.url, part_head(first, data), participant.key)
    connection.sendall(data[:1000])
    begun(coordinator, first)
    second = participant.announce(task, data, examples=9)["id"]
    connection.sendall(data[1000:])
    status, body = raw_answer(connection)
    assert (status, body["code"]) == (404, "upload-not-found")
    participant.send(second, data)
    participant.commit(second)
    coordinator.check_storage()


def test_a_commit_cut_short_after_the_bytes_moved_can_be_repeated(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    sha256 = hashlib.sha256(data).hexdigest()
    with coordinator.blobs.uploads.assembled(upload, (), sha256) as path:
        coordinator.blobs.publish_file(path, sha256)  # and the process died here
    assert put(participant, upload, b"", len(data), last=True) == (204, len(data))
    assert participant.commit(upload)["upload_id"] == upload
    coordinator.check_storage()


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
    running = create_app(coordinator.settings, coordinator.store).state.services
    old = upload_routes._require_writable(running, upload, participant.client_id, 0)
    put(participant, upload, data[:1000], 0)
    with pytest.raises(Refusal, match="the upload ends at 1000"):
        upload_routes._open_file(running, old)
    participant.send(upload, data, 1000)
    participant.commit(upload)
    with pytest.raises(Refusal, match="was accepted"):
        upload_routes._open_file(running, old)
    assert coordinator.blobs.uploads.upload_ids() == []


def test_bytes_that_vanish_in_a_commit_are_explained_by_the_row(
    coordinator: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)

    def late(path: Path) -> str:
        participant.expect(204, "DELETE", f"/v1/uploads/{upload}")
        return digest(path)

    monkeypatch.setattr("flexlora_server.lifecycle.accept_upload.digest", late)
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")


@MOSTLY_ON_SQLITE
def test_a_part_without_bytes_is_not_waited_for_either(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    monkeypatch.setattr(receive_part, "RATE_GRACE_S", 0.2)
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
        patch.setattr(LocalUploads, "discard_part", broken)
        participant.problem("part-digest-mismatch", "PATCH", path, headers=headers, content=bytes(1000))
    assert offset(participant, upload) == 0
    participant.send(upload, data)
    participant.commit(upload)


@MOSTLY_ON_SQLITE
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
