"""Compares the raw rate, our coordinator and the naive server for one number of clients, in turn and several times."""

import os
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.lib.load import transfers
from benchmarks.lib.load.collecting import Collecting, collecting
from benchmarks.lib.load.naive import STATUS, Naive, naive
from benchmarks.lib.load.payloads import RANK
from benchmarks.lib.load.resource_sampler import ResourceUsage, SampledServer, milliseconds, sample_resources
from benchmarks.lib.load.transfers import MIB, Passed
from benchmarks.lib.progress import Tell

RAW_MIB = 2560  # hashed and written at most for one raw rate
DURABLE_MIB = 2048  # above this the naive server is not measured a second time, with fsync
NAIVE, DURABLE = "naive", "naive, fsync"


@contextmanager
def generator() -> Iterator[ProcessPoolExecutor]:
    """The process that makes the load: one, apart from everything else, started afresh."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@dataclass
class Load:
    """What a server did under one kind of load, over all repetitions: rates beside the raw rate of the same minute."""

    passed: list[Passed] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # to the raw rate
    seen: list[ResourceUsage] = field(default_factory=list)

    def figures(self, clients: int) -> dict[str, Any]:
        """Medians, peaks, and percentiles over all small calls."""
        calls = [seconds for seen in self.seen for seconds in seen.calls]
        peak = max(self.seen, key=lambda seen: seen.peak)
        p50, p99 = milliseconds(calls) if calls else (None, None)
        errors = Counter(e for passed in self.passed for e in passed.errors)
        errors.update(e for seen in self.seen for e in seen.errors)
        return {
            "mib_per_s": statistics.median(passed.rate for passed in self.passed),
            "ratio_raw": statistics.median(self.ratios) if self.ratios else None,
            "server_cpu": statistics.median(
                seen.cpu / passed.seconds for seen, passed in zip(self.seen, self.passed, strict=True)
            ),
            "clients_cpu": statistics.median(passed.busy for passed in self.passed),
            "idle_mib": peak.idle,
            "peak_mib": peak.peak,
            "peak_anonymous_mib": max((s.peak_anonymous for s in self.seen if s.peak_anonymous), default=None),
            "mib_per_transfer": max((seen.peak - seen.idle) / clients for seen in self.seen),
            "status_calls": len(calls),
            "status_p50_ms": p50,
            "status_p99_ms": p99,
            "errors": sum(errors.values()),
            "error": errors.most_common(1)[0][0] if errors else None,
        }


@dataclass
class Duel:
    """So many clients, each with an update of `mib` MiB, `repeats` times."""

    pool: ProcessPoolExecutor
    clients: int
    mib: int
    repeats: int
    tell: Tell
    folder: Path
    raw: list[float] = field(default_factory=list)
    loads: dict[tuple[str, str], Load] = field(default_factory=dict)

    def hold(self) -> Iterator[dict[str, Any]]:
        """The figures, a line a server and direction."""
        self.tell(f"{self.clients} clients: setting up")
        with collecting(self._fresh("ours"), self.clients, self.mib, self.repeats) as ours:
            for repeat in range(self.repeats):
                self._ours(ours, repeat)
                self._naive()
            faults = ours.faults()
        common = {"kind": "transfers", "clients": self.clients, "mib": self.mib, "repeats": self.repeats}
        shutil.rmtree(self.folder / "ours")
        for (server, direction), load in self.loads.items():
            told = {"raw_mib_per_s": statistics.median(self.raw), **load.figures(self.clients)}
            yield common | {"server": server, "direction": direction} | told | (faults if server == "ours" else {})

    def _fresh(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir()
        return made

    def _rate(self) -> float:
        """The raw rate now, on the same disk; the files are deleted again."""
        self.tell(f"{self.clients} clients: raw")
        os.sync()
        with TemporaryDirectory(dir=self.folder) as made:
            files = max(1, min(self.clients, RAW_MIB // self.mib))
            self.raw.append(self.pool.submit(transfers.raw, Path(made), self.mib, files).result().rate)
        return self.raw[-1]

    def _ours(self, ours: Collecting, repeat: int) -> None:
        to = ours.round(repeat)
        before = self._rate()
        self.tell(f"{self.clients} clients: upload, ours ({repeat + 1} of {self.repeats})")
        watched = SampledServer(ours.pid, to.url, f"/v1/runs/{to.run}", ours.made.operator_key)
        sent = self._measure("ours", "upload", watched, transfers.upload, to, self.mib)
        sent.ratios.append(2 * sent.passed[-1].rate / (before + self._rate()))
        self.tell(f"{self.clients} clients: download, ours")
        path = f"/v1/runs/{to.run}/rounds/0/adapter?rank={RANK}"
        self._measure("ours", "download", watched, transfers.download, to.url, path, to.keys)

    def _naive(self) -> None:
        needed = 1.3 * self.clients * self.mib * MIB
        if needed > psutil.virtual_memory().available:
            self.tell(f"{self.clients} clients: no naive server, it would take {needed / 2**30:.0f} GiB of memory")
            return
        modes = [NAIVE, DURABLE] if self.clients * self.mib <= DURABLE_MIB else [NAIVE]
        for mode in modes:
            self.tell(f"{self.clients} clients: {mode}")
            with TemporaryDirectory(dir=self.folder) as made, naive(Path(made)) as server:
                self._naively(server, mode)
            os.sync()

    def _naively(self, server: Naive, mode: str) -> None:
        watched = SampledServer(server.pid, server.url, STATUS)
        query = f"durable={'true' if mode == DURABLE else 'false'}"
        given = server.url, self.mib, self.clients, query
        sent = self._measure(mode, "upload", watched, transfers.upload_plainly, *given)
        sent.ratios.append(sent.passed[-1].rate / self.raw[-1])
        if mode == NAIVE:
            keys = [""] * self.clients
            self._measure(mode, "download", watched, transfers.download, server.url, "/files/0", keys)

    def _measure(
        self, server: str, direction: str, watched: SampledServer, work: Callable[..., Passed], *given: object
    ) -> Load:
        load = self.loads.setdefault((server, direction), Load())
        with sample_resources(watched) as seen:
            load.passed.append(self.pool.submit(work, *given).result())
        load.seen.append(seen)
        return load


def default_repeats(clients: int) -> int:
    """Enough for a median where one takes seconds, one where it takes minutes."""
    return max(1, min(5, 60 // clients))


def duels(
    pool: ProcessPoolExecutor, counts: Sequence[int], mib: int, repeats: int | None, tell: Tell, folder: Path
) -> Iterator[dict[str, Any]]:
    """The figures of every number of clients in turn."""
    for clients in counts:
        made = folder / str(clients)
        made.mkdir()
        yield from Duel(pool, clients, mib, repeats or default_repeats(clients), tell, made).hold()
