"""A disk that is full before, while and after a round is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.errors import BadInput
from tests.client.agent.test_loop import Listening, agent
from tests.support.kit import Served
from tests.support.mounts import Disk, small_disk
from tests.support.trainers import Nudge


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "home", mebibytes=2) as mounted:
        yield mounted


def filling(disk: Disk, at: str, leaving: int) -> Listening:
    """Reports, and fills the disk at an event."""
    return Listening("run", lambda kind: disk.fill(leaving) if kind == at else None)


def test_a_finished_update_survives(site: Served, disk: Disk) -> None:
    run, reporter = site.run(rounds=1), Listening("run")

    class Full(Nudge):
        """Leaves a disk on which not even the state can be written."""

        def train(self, job: Any) -> Any:
            outcome = super().train(job)
            (job.adapter / "adapter_config.json").replace(job.output / "adapter_config.json")
            disk.fill()
            return outcome

    with agent(site, run, disk.folder, Full(), reporter) as working:
        working.run()
    assert {"unsaved", "accepted", "completed"} <= set(reporter.kinds())
    disk.free()


@pytest.mark.slow
def test_no_room_for_an_update_is_found_before_it_is_trained(site: Served, disk: Disk) -> None:
    run, trainer = site.run(rounds=1), Nudge()
    full = pytest.raises(BadInput, match=r"no room for an update of \d+ bytes \(No space left")
    with agent(site, run, disk.folder, trainer, filling(disk, "training", 8192)) as working, full:
        working.run()
    assert trainer.jobs == []


@pytest.mark.slow
def test_no_room_for_a_slice_is_a_sentence(site: Served, disk: Disk) -> None:
    run = site.run(rounds=1)
    full = pytest.raises(BadInput, match=r"cannot write .*: No space left on device; free space")
    with agent(site, run, disk.folder, Nudge(), filling(disk, "task", 0)) as working, full:
        working.run()
