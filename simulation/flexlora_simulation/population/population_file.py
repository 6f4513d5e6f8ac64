"""The draw of an experiment as a file, `population.parquet`: a row for each participant, which `partition.path` takes back.

Whoever reads it needs nothing of ours: the indices are places in the workload's training items, from 0.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from flexlora_simulation.errors import SimulationError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.population.part_file import ITEMS
from flexlora_simulation.population.participants import Participant
from flexlora_simulation.workloads.contract import Item

FILE = "population.parquet"
COUNTS, INDICES = pa.map_(pa.string(), pa.int64()), pa.list_(pa.int64())


def write_population(
    folder: Path, experiment: Experiment, participants: Sequence[Participant], items: Sequence[Item]
) -> Path:
    """Write the participants of the experiment in this folder; the same draw gives the same bytes.

    Raises:
        SimulationError: the folder holds other participants, so that an experiment begun there cannot go on with these.
    """
    table, path = _table(experiment, participants, items), folder / FILE
    if path.exists():
        if parquet.read_table(path).equals(table):
            return path
        raise SimulationError(f"{path} holds other participants than this experiment's; give a new folder")
    part = folder / f".{FILE}.{os.getpid()}"
    parquet.write_table(table, part)
    part.replace(path)
    return path


def _table(experiment: Experiment, participants: Sequence[Participant], items: Sequence[Item]) -> pa.Table:
    """seen: whether it ever trains; who does not has no resource. resource: the place in the experiment's list, from 0.

    examples, groups and labels are of `train` and `heldout` together; labels: how many examples have each.
    """
    own = [[items[index] for index in (*one.part.train, *one.part.heldout)] for one in participants]
    affords = [one.resource if one.part.seen else None for one in participants]
    labels = [Counter(item.label for item in each if item.label is not None) for each in own]
    columns = {
        "participant": pa.array([one.name for one in participants]),
        "seen": pa.array([one.part.seen for one in participants]),
        "resource": pa.array([None if one is None else experiment.resources.index(one) for one in affords], pa.int64()),
        "rank": pa.array([one and one.rank for one in affords], pa.int64()),
        "hold_rank": pa.array([one and (one.hold_rank or one.rank) for one in affords], pa.int64()),
        "attention_rank": pa.array([one and one.attention_rank for one in affords], pa.int64()),
        "rank_pattern": pa.array([one and sorted(one.rank_pattern.items()) for one in affords], COUNTS),
        "speed": pa.array([one and one.speed for one in affords], pa.float64()),
        "examples": pa.array(map(len, own), pa.int64()),
        "groups": pa.array(
            [sorted({item.group for item in each if item.group}) for each in own], pa.list_(pa.string())
        ),
        "labels": pa.array([sorted(each.items()) for each in labels], COUNTS),
        "train": pa.array([one.part.train for one in participants], INDICES),
        "heldout": pa.array([one.part.heldout for one in participants], INDICES),
    }
    return pa.table(columns, metadata={ITEMS: str(len(items))})
