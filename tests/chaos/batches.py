"""Plays a share of the histories in a process of its own."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.plants import PLANTS
from tests.chaos.simulate import Tally, Violated, play_many
from tests.chaos.sites import new_site


@dataclass(frozen=True)
class Batch:
    """Histories to be played in one go; `socket` is PostgreSQL's, None on SQLite."""

    seed: int
    steps: int
    count: int
    plant: str | None
    socket: Path | None


def play_batch(batch: Batch) -> Tally | str:
    """A process's share; the trace where something was violated."""
    warnings.simplefilter("ignore")  # planted defects cause some
    with new_site(batch.socket) as here:
        try:
            plant = nullcontext if batch.plant is None else PLANTS[batch.plant]
            return play_many(here, batch.seed, batch.steps, batch.count, plant=plant)
        except Violated as violated:
            again = f"--seed {batch.seed} --steps {batch.steps} --histories {batch.count}"
            again += f" --plant {batch.plant}" if batch.plant else ""
            again += " --database postgresql" if batch.socket else ""
            return f"{violated}\n\nagain: scripts/chaos {again}"
