"""Writing a part to the disk: each byte once and in order, whatever the disk or a shutdown does."""

import asyncio
import errno
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from flexlora_server.api import receive_part
from flexlora_server.api.receive_part import BUFFER_BYTES
from flexlora_server.storage import fsync
from flexlora_server.storage.local_uploads import LocalUploads, lock_file, seek_to


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
    file, data = SlowDisk(), bytes(range(256)) * (BUFFER_BYTES // 256)

    async def receive() -> Message:
        return {"type": "http.request", "body": data, "more_body": True}

    async def cancelled() -> None:
        request = Request({"type": "http", "headers": []}, receive)
        task = asyncio.create_task(receive_part.receive_body(request, file, 2 * BUFFER_BYTES, 0))
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


def test_missing_bytes_are_never_made_up(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"1234")
    with lock_file(path) as file:
        with pytest.raises(OSError, match="only 4 are there"):
            seek_to(file, 5)
        seek_to(file, 3)
    assert path.read_bytes() == b"123"


def test_a_file_has_a_durable_name_before_its_first_bytes_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming, synced = LocalUploads(tmp_path), list[Path]()
    monkeypatch.setattr(fsync, "sync_folder", synced.append)
    for offset, part in ((0, b"1234"), (4, b"56")):
        with incoming.open_part("upload", offset, lambda there: None) as file:
            assert synced == [tmp_path / "partial"]  # once
            file.write(part)
            assert incoming.finish_part("upload", offset, file) == (offset + len(part), None)
    assert (tmp_path / "partial" / "upload").read_bytes() == b"123456"


class FullDisk(BytesIO):
    """A file that refuses its second write, and would take the third."""

    writes = 0

    def write(self, data: Any) -> int:
        self.writes += 1
        if self.writes == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_what_follows_bytes_that_the_disk_refused_is_not_written() -> None:
    file, sent = FullDisk(), iter([bytes(BUFFER_BYTES), b"1" * BUFFER_BYTES, b"2" * BUFFER_BYTES, b"3" * BUFFER_BYTES])

    async def receive() -> Message:
        return {"type": "http.request", "body": next(sent), "more_body": True}

    async def received() -> None:
        await receive_part.receive_body(Request({"type": "http", "headers": []}, receive), file, 9 * BUFFER_BYTES, 0)

    with pytest.raises(OSError, match="No space"):
        asyncio.run(received())
    assert file.getvalue() == bytes(BUFFER_BYTES)
