"""The optimizer's state from round to round (`training.optimizer_state`): fresh, or kept as it is.

A file for each round beside the round before's: a round that is trained again, in another attempt, starts from the same
state. It counts only in the round that follows its own, in the same run, for the same participant, ranks and optimizer;
elsewhere the state is fresh, and the participant is told. A fresh adapter in each round has no state to go on from.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from flexlora_client.training.contract import CONFIG_FILE, Job
from flexlora_client.training.loop import snapshots


class HasState(Protocol):
    """A `Stepper`, or an optimizer of PyTorch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from these."""


def restore_optimizer(optimizer: HasState, job: Job) -> None:
    """Start from the state of the round before, where the run asks for it and there is one."""
    if job.state is None or not _is_carried(job) or job.round == 1:
        return
    path = _path(job.state, job.round - 1)
    found = snapshots.load(path) if path.exists() else None
    if found is None or found.get("identity") != _identity(job):
        job.notice(f"the optimizer's state starts fresh: none of round {job.round - 1} is there that fits")
        return
    optimizer.load_state_dict(found["state"])


def save_optimizer(optimizer: HasState, job: Job) -> None:
    """Keep the state after this round, and that before it. Without room the next round starts fresh."""
    if job.state is None or not _is_carried(job):
        return
    content = {"identity": _identity(job), "state": snapshots.copied(optimizer.state_dict())}
    try:
        snapshots.save_whole(content, _path(job.state, job.round))
    except (OSError, RuntimeError) as error:
        job.notice(f"the optimizer's state could not be kept ({error}); the next round starts with a fresh one")
    for path in job.state.glob("round-*.pt"):
        if path not in (_path(job.state, job.round), _path(job.state, job.round - 1)):
            path.unlink()


def _is_carried(job: Job) -> bool:
    return job.spec.training.optimizer_state == "keep" and job.trainable != "fresh"


def _identity(job: Job) -> str:
    config = json.loads((job.adapter / CONFIG_FILE).read_bytes())
    ranks = {name: config.get(name) for name in ("r", "rank_pattern", "lora_alpha", "alpha_pattern")}
    parts = (job.spec.model_dump_json(), job.participant, job.trainable, job.compute.optimizer, ranks)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _path(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06}.pt"
