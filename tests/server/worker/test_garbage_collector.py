"""The garbage collector deletes what nothing refers to, and nothing else."""

import os

from flexlora_server.worker.garbage_collector import ABANDONED_AFTER_S, collect_garbage
from tests.support.kit import Served, part


def test_bytes_of_open_uploads_and_fresh_temporary_files_stay(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.expect(204, "PATCH", f"/v1/uploads/{upload}", headers=part(data[:99], 0), content=data[:99])
    folder = coordinator.settings.data_dir
    (folder / "partial" / ("0" * 32)).write_bytes(b"of an upload that no row knows")
    fresh, old = folder / "temporary" / "fresh", folder / "temporary" / "old"
    for path in (fresh, old):
        path.write_bytes(b"half a slice")
    last_write = old.stat().st_mtime - ABANDONED_AFTER_S - 1
    os.utime(old, (last_write, last_write))
    blobs = set((folder / "blobs").glob("*/*"))
    collect_garbage(coordinator.store, coordinator.blobs)
    assert coordinator.blobs.uploads.upload_ids() == [upload]
    assert (fresh.exists(), old.exists()) == (True, False)
    assert set((folder / "blobs").glob("*/*")) == blobs
    fresh.unlink()
    participant.send(upload, data, 99)
    participant.commit(upload)
    coordinator.check_storage()


def test_the_bytes_of_a_cancelled_runs_uploads_go(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    collect_garbage(coordinator.store, coordinator.blobs)
    assert coordinator.blobs.uploads.upload_ids() == []
