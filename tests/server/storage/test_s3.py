"""A coordinator whose blobs lie in an object store: a whole round, two writers, links, and a store that is gone."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import obstore
import pytest

from flexlora_server.app import create_app
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from flexlora_server.maintenance.verify_blobs import check_each_blob
from flexlora_server.storage.s3_uploads import S3Uploads
from flexlora_server.worker.garbage_collector import collect_garbage
from tests.support.kit import Api, Clock, Participant, Served, part, served
from tests.support.objectstore import ObjectStore

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def site(store: Store, clock: Clock, tmp_path: Path, s3: ObjectStore, prefix: str) -> Iterator[Served]:
    with served(store, tmp_path / "data", clock, **s3.settings(prefix)) as running:
        yield running


def test_a_round(site: Served, s3: ObjectStore, prefix: str) -> None:
    participant, task, data = site.working()
    upload = participant.announce(task, data)["id"]
    participant.expect(204, "PATCH", f"/v1/uploads/{upload}", headers=part(data[:999], 0), content=data[:999])
    collect_garbage(site.store, site.blobs)  # of an open upload it deletes nothing
    participant.send(upload, data, 999)
    assert len([key for key in s3.keys(prefix) if key.startswith(f"incoming/{upload}/")]) == 2
    receipt = participant.commit(upload)
    assert participant.commit(upload) == receipt
    assert not [key for key in s3.keys(prefix) if key.startswith("incoming/")]
    assert site.work() == 1
    participant.download(participant.task("run"))
    assert list((site.settings.data_dir / "temporary").iterdir()) == []
    collect_garbage(site.store, site.blobs, min_blob_age=-10)
    assert all(fault is None for _, fault in check_each_blob(site.store, site.settings))
    obstore.put(s3.direct(prefix), f"blobs/{receipt['sha256'][:2]}/{receipt['sha256']}", b"damaged")
    found = dict(check_each_blob(site.store, site.settings))
    assert "damaged" in (found.pop(receipt["sha256"]) or "")
    assert set(found.values()) == {None}


def test_writers_at_two_coordinators(site: Served, clock: Clock, tmp_path: Path, s3: ObjectStore, prefix: str) -> None:
    """Both begin a part at the same offset; one is acknowledged, the other one's object is deleted."""
    participant, task, data = site.working()
    upload = participant.announce(task, data)["id"]
    with served(site.store, tmp_path / "other", clock, **s3.settings(prefix)) as second:
        there = Participant(second.http, participant.key)
        with site.blobs.uploads.open_part(upload, 0, lambda there: None) as mine:
            mine.write(bytes(500))  # not acknowledged: the other one is faster
            there.expect(204, "PATCH", f"/v1/uploads/{upload}", headers=part(data[:999], 0), content=data[:999])
            site.blobs.uploads.finish_part(upload, 0, mine)
        assert participant.call("HEAD", f"/v1/uploads/{upload}").headers["upload-offset"] == "999"
        participant.send(upload, data, 999)
        assert there.commit(upload)["sha256"] == hashlib.sha256(data).hexdigest()
    assert not [key for key in s3.keys(prefix) if key.startswith("incoming/")]


def test_slices_by_link(store: Store, clock: Clock, tmp_path: Path, s3: ObjectStore, prefix: str) -> None:
    told = s3.settings(prefix) | {"s3_public_endpoint": s3.url}
    with served(store, tmp_path / "data", clock, **told) as site:
        _, task, _ = site.working()
        href, sha256 = task["adapter"]["href"], task["adapter"]["sha256"]
        response = site.operator.call("GET", href)
        assert (response.status_code, response.headers["etag"]) == (307, f'"{sha256}"')
        assert response.headers["cache-control"] == "private, no-store"
        assert (
            response.headers["repr-digest"]
            == part(httpx2.get(response.headers["location"]).content, 0)["Content-Digest"]
        )
        assert hashlib.sha256(httpx2.get(response.headers["location"]).content).hexdigest() == sha256
        cut = httpx2.get(response.headers["location"], headers={"Range": "bytes=8-"})
        assert (cut.status_code, len(cut.content)) == (206, task["adapter"]["size"] - 8)
        again = site.operator.call("GET", href, headers={"If-None-Match": f'"{sha256}"'})
        assert again.status_code == 304
        head = site.operator.expect(200, "HEAD", href)
        assert head.headers["content-length"] == str(task["adapter"]["size"])


def test_a_store_that_is_gone_for_a_while(site: Served, s3: ObjectStore) -> None:
    participant, task, data = site.working()
    upload = participant.announce(task, data)["id"]
    path = f"/v1/uploads/{upload}"
    with s3.gone():
        response = participant.call("PATCH", path, headers=part(data, 0), content=data)
        assert (response.status_code, json.loads(response.content)["code"]) == (503, "unavailable")
        assert response.headers["retry-after"]
        Api(site.http).problem("unavailable", "GET", "/readyz")
        assert participant.call("HEAD", path).headers["upload-offset"] == "0"
        with pytest.raises(StartupError, match="the storage of the blobs cannot be read"):
            create_app(site.settings, site.store)
    Api(site.http).expect(200, "GET", "/readyz")
    participant.send(upload, data)
    with s3.gone():
        participant.problem("unavailable", "PUT", f"{path}/commit")
    participant.commit(upload)
    assert site.work() == 1


def test_damaged_copies_are_not_served_and_blame_nobody(site: Served) -> None:
    participant, task, data = site.working(rounds=1)
    cache = site.settings.data_dir / "cache"
    (cache / task["adapter"]["sha256"]).write_bytes(b"short")
    participant.download(task)
    (cache / participant.upload(task, data)["sha256"]).write_bytes(b"short")
    assert site.work() == 1
    site.clock.advance(2)
    site.work()
    assert site.round("run", 1)["summary"]["state"] == "PUBLISHED"


def test_a_commit_that_another_one_overtakes(
    site: Served, clock: Clock, tmp_path: Path, s3: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process it is told to wait; by another one the update was accepted meanwhile: the same receipt."""
    participant, task, data = site.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    receipts, real = list[object](), S3Uploads.assembled
    with served(site.store, tmp_path / "other", clock, **s3.settings(prefix)) as second:
        there = Participant(second.http, participant.key)

        def overtaken(self: S3Uploads, *given: Any) -> AbstractContextManager[Path]:
            monkeypatch.setattr(S3Uploads, "assembled", real)
            participant.problem("upload-busy", "PUT", f"/v1/uploads/{upload}/commit")
            receipts.append(there.commit(upload))
            return real(self, *given)

        monkeypatch.setattr(S3Uploads, "assembled", overtaken)
        assert [participant.commit(upload)] == receipts


def test_parts_that_are_lost_are_sent_again(site: Served, s3: ObjectStore, prefix: str) -> None:
    participant, task, data = site.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    for key in s3.keys(prefix):
        if key.startswith("incoming/"):
            obstore.delete(s3.direct(prefix), key)
    participant.problem("upload-incomplete", "PUT", f"/v1/uploads/{upload}/commit")
    participant.send(upload, data)
    participant.commit(upload)


def test_a_deletion_that_comes_after_publishing_is_made_good(site: Served, s3: ObjectStore, prefix: str) -> None:
    with site.blobs.writing() as file:
        file.write(b"published again")
        blob = site.blobs.finish(file)
    with site.blobs.protect_from_collection([blob.sha256]):
        (seen,) = site.blobs.older_than(-3600)
        site.blobs.delete_if_unchanged(replace(seen, modified=seen.modified - 0.9))  # a listing with parts of a second
        assert s3.keys(prefix) == ["probe/written"]
    assert site.blobs.missing([blob.sha256]) == []
    assert site.blobs.verified_path(blob.sha256).read_bytes() == b"published again"
