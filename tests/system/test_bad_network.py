"""An agent's own transfers, to a real coordinator, through a network that cuts, resets, swallows, crawls and lags."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flexlora_client.agent.download import download
from flexlora_client.agent.slice_cache import SliceCache, request_for_task
from flexlora_client.agent.upload import upload
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.http_messages import Body
from flexlora_client.coordinator_api.retry import Backoff, RetryPolicy
from flexlora_client.coordinator_api.upload_parts import MAX_PART_BYTES, Part
from flexlora_client.files import sha256_of
from flexlora_client.training.contract import ADAPTER_FILE
from flexlora_server.api import receive_part
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import module_ranks
from tests.support.kit import Participant, Served, served_on_sqlite
from tests.support.proxy import Fault, Proxy, proxy, scattered

MIB = 1 << 20
IDLE = 0.3  # seconds without a byte after which the client gives a connection up
SMALL = MIB  # at rank 32
LARGE = 1024 * MIB  # at rank 512


def _run(ranks: list[int], count: int, width: int) -> dict[str, Any]:
    modules = [{"name": f"layers.{i}.proj", "out_features": width, "in_features": width} for i in range(count)]
    return {"ranks": ranks, "modules": modules}


SMALL_RUN, LARGE_RUN = _run([32], 1, 4096), _run([128, 512], 16, 16384)


def nothing(done: int, total: int) -> None:
    """Nobody watches the bytes."""


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Served]:
    """A coordinator on SQLite."""
    with served_on_sqlite(tmp_path) as running:
        yield running


class Recording(Api):
    """The agent's calls; remembers offset and length of every part that was begun."""

    def __init__(self, http: Http, retry: RetryPolicy) -> None:
        super().__init__(http, retry)
        self.parts: list[tuple[int, int]] = []

    def send_part(self, upload: str, part: Part, body: Body, *, last: bool) -> int:
        self.parts.append((part.offset, len(part.content)))
        return super().send_part(upload, part, body, last=last)

    @property
    def sent_again(self) -> int:
        """The most bytes that were begun anew after a cut."""
        pairs = zip(self.parts, self.parts[1:], strict=False)
        return max((offset + length - following for (offset, length), (following, _) in pairs), default=0)


@contextmanager
def calls(line: Proxy, participant: Participant) -> Iterator[Recording]:
    """A participant's calls through the line; it is patient, and quick to try again."""
    assert participant.key is not None
    with Recording(Http(line.url, participant.key, io_timeout=IDLE), RetryPolicy(Backoff(base=0.01, cap=0.05))) as api:
        yield api


@dataclass(frozen=True)
class Assigned:
    """A participant with its task of round 1."""

    participant: Participant
    task: Task

    def update(self, folder: Path) -> Path:
        """An update it may send, written where it trained."""
        spec, rank = self.task.spec, self.task.rank
        shapes = adapter_shapes(spec.modules, spec.extra, module_ranks(spec.modules, rank, {}))
        path = folder / f"update-{rank}.safetensors"
        pattern = torch.arange(1, 1 + max(shape[-1] for shape in shapes.values())) * 1e-7
        save_file({key: pattern[: shape[-1]].repeat(shape[0], 1) for key, shape in shapes.items()}, path)
        return path

    def send(self, api: Api, path: Path) -> str:
        """Upload with the agent's own code; the digest that counts."""
        task, size, digest = self.task, path.stat().st_size, sha256_of(path)
        alpha = task.spec.scaling.alpha_of(task.rank)
        told = UploadCreate(rank=task.rank, alpha=alpha, examples=10, size=size, sha256=digest)
        receipt = upload(api, task.run, task.round, told, path, nothing)
        assert receipt.sha256 == digest
        return digest


def assigned(coordinator: Served, *ranks: int, **run: Any) -> list[Assigned]:
    """Participants of these ranks in a run's first round."""
    coordinator.run(gather_timeout=0.0, min_clients=len(ranks), **run)
    found = [coordinator.enroll(f"rank-{rank}") for rank in ranks]
    for participant, rank in zip(found, ranks, strict=True):
        participant.declare("run", rank)
    for participant in found:
        participant.call("GET", "/v1/runs/run/task", params={"wait": 0})
    return [Assigned(p, Task.model_validate_json(p.call("GET", "/v1/runs/run/task?wait=30").content)) for p in found]


def check_counted(coordinator: Served, digest: str) -> None:
    """The coordinator holds exactly these bytes."""
    assert sha256_of(coordinator.blobs.path(digest)) == digest
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 1


@dataclass(frozen=True)
class Network:
    """One way for a network to be bad."""

    name: str
    faults: Sequence[Fault] = ()
    rate: float | None = None  # bytes a second
    latency: float = 0.0  # seconds each way

    def __str__(self) -> str:
        return self.name

    def to(self, coordinator: Served) -> AbstractContextManager[Proxy]:
        return proxy(coordinator.url, self.faults, rate=self.rate, latency=self.latency)


UPLOADS = [
    Network("cuts", scattered(1, 8, "up", SMALL, ["cut"])),
    Network("resets", scattered(2, 8, "up", SMALL, ["reset"])),
    Network("lost answers", scattered(3, 4, "down", 800)),
    Network("black holes", [Fault("hole", "up", 0), Fault("hole", "down", 300)]),
    Network("slow line", scattered(4, 2, "up", SMALL), rate=4_000_000.0),
    Network("latency", scattered(5, 2, "up", SMALL), latency=0.02),
]
DOWNLOADS = [
    Network("cuts", scattered(6, 8, "down", SMALL, ["cut"])),
    Network("resets", scattered(7, 8, "down", SMALL, ["reset"])),
    Network("black holes", [Fault("hole", "up", 0), Fault("hole", "down", SMALL // 2)]),
    Network("slow line", scattered(8, 2, "down", SMALL), rate=4_000_000.0),
    Network("latency", scattered(9, 2, "down", SMALL), latency=0.02),
]


@pytest.mark.parametrize("network", UPLOADS, ids=str)
def test_an_upload_ends_right(coordinator: Served, tmp_path: Path, network: Network) -> None:
    [one] = assigned(coordinator, 32, **SMALL_RUN)
    path = one.update(tmp_path)
    with network.to(coordinator) as line, calls(line, one.participant) as api:
        digest = one.send(api, path)
        assert line.faults == []
        assert api.sent_again <= MAX_PART_BYTES
    check_counted(coordinator, digest)


@pytest.mark.parametrize("network", DOWNLOADS, ids=str)
def test_a_download_ends_right(coordinator: Served, tmp_path: Path, network: Network) -> None:
    [one] = assigned(coordinator, 32, **SMALL_RUN)
    with network.to(coordinator) as line, calls(line, one.participant) as api:
        found = download(api, SliceCache(tmp_path / "slices"), request_for_task(one.task), nothing)
        assert line.faults == []
    assert sha256_of(found.folder / ADAPTER_FILE) == one.task.adapter.sha256
    assert found.fetched == found.size  # what arrived before a cut was not fetched again


@pytest.mark.slow
def test_a_gibibyte_goes_up_through_fifty_cuts(coordinator: Served, tmp_path: Path) -> None:
    one, _ = assigned(coordinator, 512, 128, **LARGE_RUN)
    path = one.update(tmp_path)
    size = path.stat().st_size
    assert size >= LARGE
    with proxy(coordinator.url, scattered(11, 50, "up", size)) as line, calls(line, one.participant) as api:
        digest = one.send(api, path)
        assert line.faults == []
        sent, again, parts = line.taken["up"], api.sent_again, len(api.parts)
    check_counted(coordinator, digest)
    print(
        f"upload of {size} bytes, 50 cuts: {sent} sent ({sent / size:.4f}x), {parts} parts, {again} again after a cut"
    )
    assert again <= MAX_PART_BYTES
    assert sent <= 1.4 * size


@pytest.mark.slow
def test_a_slice_comes_down_through_twenty_cuts(coordinator: Served, tmp_path: Path) -> None:
    _, one = assigned(coordinator, 512, 128, **LARGE_RUN)
    size = one.task.adapter.size
    assert size >= LARGE // 4
    with proxy(coordinator.url, scattered(12, 20, "down", size)) as line, calls(line, one.participant) as api:
        found = download(api, SliceCache(tmp_path / "slices"), request_for_task(one.task), nothing)
        assert line.faults == []
        sent = line.taken["down"]
    assert sha256_of(found.folder / ADAPTER_FILE) == one.task.adapter.sha256
    print(f"download of {size} bytes, 20 cuts: {sent} sent ({sent / size:.4f}x), {found.fetched} arrived")
    assert sent <= 1.1 * size


def test_a_part_swallowed_half_way_is_taken_up_again(
    coordinator: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator knows of no cut: it keeps others out of the upload until it has heard nothing for long enough."""
    monkeypatch.setattr(receive_part, "SILENCE_TIMEOUT_S", IDLE)
    [one] = assigned(coordinator, 32, **SMALL_RUN)
    path = one.update(tmp_path)
    with proxy(coordinator.url, [Fault("hole", "up", SMALL // 2)]) as line, calls(line, one.participant) as api:
        digest = one.send(api, path)
        assert line.faults == []
        assert api.sent_again <= MAX_PART_BYTES
    check_counted(coordinator, digest)
