"""Holds an agent's process at a moment of its round until the test lets it go on.

Environment: GATE, a folder with the pipe `go-on`; GATE_AT, "training" or "evaluating". The first time that the process is
there, it makes the file `reached` and waits until somebody opens the pipe for writing.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flexlora_client.training.contract import Job, Outcome
from tests.support.trainers import OftenSaved

HELD_STEP = 5


def hold(phase: str) -> None:
    """Wait, where this is the phase to wait in and nobody waited before."""
    folder = Path(os.environ["GATE"])
    if os.environ["GATE_AT"] == phase and not (folder / "reached").exists():
        (folder / "reached").touch()
        (folder / "go-on").open("rb").close()


def agreement(predictions: Sequence[str], references: Sequence[str]) -> float:
    """A metric, for `--metric`."""
    hold("evaluating")
    return float(predictions == references)


class HeldTraining(OftenSaved):
    """Waits in the middle of training, after a checkpoint."""

    supports = OftenSaved.supports

    def train(self, job: Job) -> Outcome:
        def progress(step: int, total: int, loss: float) -> None:
            if step == HELD_STEP:
                hold("training")
            job.progress(step, total, loss)

        return super().train(replace(job, progress=progress))
