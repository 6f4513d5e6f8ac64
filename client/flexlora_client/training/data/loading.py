"""A participant's data, from the options of the command line to the two parts of it: the one entrance for callers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flexlora_client.errors import DataError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.reading import SHOWN, Reading
from flexlora_client.training.data.split import check_fraction, split
from flexlora_client.training.data.store import ExampleStore, Selection
from flexlora_shared.messages.runs import ModelSpec


@dataclass(frozen=True)
class LoadedData:
    """The examples, and what was met on the way to them."""

    train: Selection
    heldout: Selection  # may be empty
    rows: int  # read, the bad ones among them
    skipped: int  # bad rows
    faults: tuple[str, ...]  # the first bad rows, each a sentence with its place
    duplicates: int  # examples equal to an earlier one of the same files
    leaked: int  # examples of the training files that the held-out files hold too; left out of training
    notes: tuple[str, ...]  # what was guessed or left out, a sentence each without its full stop

    def lines(self) -> list[str]:
        """What a person should be told, a sentence each: counts first, then notes and bad rows."""
        told = [f"{len(self.train):,} examples to train on, {len(self.heldout):,} held out"]
        if self.duplicates:
            told.append(f"equal to an earlier example, and kept: {self.duplicates:,}")
        if self.leaked:
            told.append(f"in --heldout too, and left out of training: {self.leaked:,}")
        told += [
            *self.notes[:SHOWN],
            *([f"and {more:,} more like it"] if (more := len(self.notes) - SHOWN) > 0 else []),
        ]
        if self.skipped:
            more = self.skipped - len(self.faults)
            told.append(f"bad rows, skipped: {self.skipped:,} of {self.rows:,}")
            told += [f"  {fault}" for fault in self.faults] + ([f"  and {more:,} more"] if more else [])
        return told


def load_data(options: DataOptions, model: ModelSpec, *, seed: int = 0, folder: Path | None = None) -> LoadedData:
    """Read all files and split them; `seed` is the run's, and `folder` takes what memory should not hold.

    Equal examples never stand on both sides. Without held-out files, each example's content and the seed decide on its side, so
    that rows which are added move no other. With them, examples that they share with the training files are not trained on.

    Raises:
        DataError: see `Reading`; the fraction is out of range; nothing is left to train on.
    """
    check_fraction(options.heldout_fraction)
    reading = Reading(options, model)
    heldout = ExampleStore(seed, folder)
    if options.heldout:
        for example in reading.examples(options.heldout):
            heldout.add(example)
    store = ExampleStore(seed, folder)
    for example in reading.examples(options.data):
        store.add(example)
    if options.heldout:
        held = np.isin(store.keys, heldout.keys)
        train, leaked = Selection(store, np.flatnonzero(~held)), int(held.sum())
        parts = train, Selection(heldout, np.arange(len(heldout)))
        if not len(train):
            raise DataError(
                "every example of --data is in --heldout too, so none is left to train on; give other files."
            )
    else:
        parts, leaked = split(store, options.heldout_fraction), 0
    tally = reading.tally
    twice = sum(len(each) - len(np.unique(each.keys)) for each in (store, heldout))
    return LoadedData(*parts, tally.rows, tally.skipped, tuple(tally.faults), twice, leaked, tuple(tally.notes))
