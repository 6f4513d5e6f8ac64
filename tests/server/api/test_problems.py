"""Every problem of the protocol's table, provoked once by a real request; and nothing else ever answers with a 5xx."""

import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from flexlora_server.database.transactions import Store
from flexlora_shared.problems import PROBLEMS, Code
from tests.support import faults
from tests.support.kit import Api, Clock, Served, encode, part, served, tensors
from tests.support.provocations import PROVOCATIONS

assert faults  # its provocations are registered by importing it


def test_every_code_has_its_provocation() -> None:
    assert set(PROVOCATIONS) == set(PROBLEMS)


OF_DATABASE = (Code.UNAVAILABLE, Code.INTERNAL)  # all others are made by rules, which are one for both databases


@pytest.mark.parametrize(
    ("database_url", "code"),
    [*(("sqlite", code) for code in PROBLEMS), *(("postgresql", code) for code in OF_DATABASE)],
    indirect=["database_url"],
)
def test_the_problem(coordinator: Served, code: Code, caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Any] = []

    def watch(response: httpx2.Response) -> None:
        if response.status_code >= 500:
            failures.append(json.loads(response.read())["code"])

    coordinator.http.event_hooks["response"].append(watch)
    status, body = PROVOCATIONS[code](coordinator)
    known = PROBLEMS[code]
    assert (status, body["status"], body["code"], body["title"]) == (known.status, known.status, code, known.title)
    assert body["type"] == f"urn:flexlora:problem:{code}"
    assert body["detail"].endswith(".")
    assert set(failures) <= {str(code)}
    tracebacks = [record for record in caplog.records if record.exc_info and record.levelno >= logging.ERROR]
    assert tracebacks == [] or code in {Code.UNAVAILABLE, Code.INTERNAL}
    coordinator.check_storage()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk(store: Store, clock: Clock, tmp_path: Path) -> None:
    """The same as the file-size limit, on a real full file system; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        with served(store, disk, clock) as coordinator:
            module = {"name": "wide", "out_features": 16_000, "in_features": 16_000}
            run = coordinator.run(modules=[module], norm_bound=1e9)
            participant = coordinator.enroll()
            participant.declare("run", 8)
            task, data = participant.task("run"), encode(tensors(run, 8))
            upload = participant.announce(task, data)["id"]
            filler = disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 500_000))
            participant.problem("storage-full", "PATCH", f"/v1/uploads/{upload}", headers=part(data, 0), content=data)
            Api(coordinator.http).expect(200, "GET", "/healthz")
            filler.unlink()
            offset = int(participant.call("HEAD", f"/v1/uploads/{upload}").headers["upload-offset"])
            participant.send(upload, data, offset)
            participant.commit(upload)
            coordinator.check_storage()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
