"""Checkpoints within a round: training that was killed or stopped goes on from the last one, to the same bytes as without.

One file, replaced as a whole. It counts only for a job of the same slice, run, round, examples and way to compute; the
attempt of the round does not matter. A checkpoint is due once training took INTERVAL_S since the last one, and 20 times
what writing that one took: writing costs a twentieth of the time at most.
"""

import hashlib
import time
from dataclasses import replace
from typing import Any

import torch

from flexlora_client.files import sha256_of
from flexlora_client.training.contract import ADAPTER_FILE, Job
from flexlora_client.training.data.store import digest_of
from flexlora_client.training.loop import snapshots

INTERVAL_S = 30.0
SHARE = 1 / 20  # of the time may go into writing


class Checkpoints:
    """The checkpoint of one job; none is written or read where the job names no folder."""

    def __init__(self, job: Job, interval: float = INTERVAL_S) -> None:
        self._job, self._interval = job, interval
        self._path = None if job.checkpoints is None else job.checkpoints / "training.pt"
        self._identity = "" if self._path is None else identify(job)
        self._pause, self._last = interval, time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state to go on from; a checkpoint of another job is removed."""
        if self._path is None or not self._path.exists():
            return None
        found = snapshots.load(self._path)
        if found is None or found.get("identity") != self._identity:
            self._path.unlink()
            return None
        state: dict[str, Any] = found["state"]
        return state

    def due(self) -> bool:
        """Whether it is time for one."""
        return self._path is not None and time.monotonic() - self._last >= self._pause

    def write(self, state: dict[str, Any]) -> bool:
        """Replace the checkpoint; returns whether one lies there now. Without room training goes on without."""
        if self._path is None:
            return False
        began = time.monotonic()
        try:
            snapshots.save_whole({"identity": self._identity, "state": state}, self._path)
        except (OSError, RuntimeError) as error:
            self._job.notice(f"no checkpoint could be written ({error}); training goes on without")
            self._path = None
            return False
        self._last = time.monotonic()
        self._pause = max(self._interval, (self._last - began) / SHARE)
        return True


def identify(job: Job) -> str:
    """SHA-256 over everything that decides what training computes, but for rounding and the random numbers of dropout.

    So without how many examples are computed at once and what is recomputed: a checkpoint outlives an end of memory.
    """
    digest = hashlib.sha256()
    parts = (job.spec.model_dump_json(), job.round, job.trainable, job.participant, job.device, job.model_path)
    compute = replace(job.compute, micro_batch=None, gradient_checkpointing=False)
    slice_digest = sha256_of(job.adapter / ADAPTER_FILE)
    frozen = () if job.frozen is None else (sha256_of(job.frozen / ADAPTER_FILE),)
    for part in (
        *parts,
        compute,
        slice_digest,
        *frozen,
        torch.__version__,
        digest_of(job.train),
        digest_of(job.heldout),
    ):
        digest.update(f"{part!r}\0".encode())
    return digest.hexdigest()
