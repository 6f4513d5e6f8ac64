"""What a killed run must have in common with the one that nobody disturbed."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from flexlora_server.database.schema import Round, RoundInput, Upload
from flexlora_server.storage import digest, open_blobs
from tests.system.endurance.place import Place, Receipt
from tests.system.endurance.template import AGENTS, RUN


@dataclass(frozen=True)
class Verdict:
    """What became of a run."""

    completed: bool
    rounds: int  # published, without round 0
    receipts: int  # that agents reported
    lost: int  # of these, not in their round's inputs or not on the disk as acknowledged
    abandoned: int  # attempts at rounds that came to nothing
    failed_aggregations: int  # each was taken up again
    inputs_wrong: int  # rounds whose inputs are not one update of everybody
    identical: bool  # every round's adapter, bit for bit

    @property
    def good(self) -> bool:
        """Whether nothing of the kills shows in the outcome."""
        wrong = self.lost or self.abandoned or self.inputs_wrong
        return self.completed and self.identical and not wrong


def judge(place: Place, undisturbed: Mapping[int, str], receipts: Sequence[Receipt]) -> Verdict:
    """Look at a run that has ended, of which participants hold these receipts."""
    with place.store.reading() as tx:
        attempts = list(tx.session.scalars(select(Round).where(Round.run == RUN)))
        counted = select(Upload, Round.number).join(RoundInput, RoundInput.upload_id == Upload.id)
        counted = counted.join(Round, Round.id == RoundInput.round_id).where(~RoundInput.excluded, Round.run == RUN)
        inputs = [(row.client_id, number, row.sha256) for row, number in tx.session.execute(counted)]
    published = place.published()
    kept = {entry for entry in inputs if _sound(place, entry[2])}
    in_round = Counter(number for _, number, _ in inputs)
    return Verdict(
        completed=place.state() == "COMPLETED",
        rounds=len(published) - 1,
        receipts=len(receipts),
        lost=sum(receipt not in kept for receipt in receipts),
        abandoned=sum(row.state != "PUBLISHED" for row in attempts),
        failed_aggregations=sum(row.failures for row in attempts),
        inputs_wrong=sum(in_round[number] != len(AGENTS) for number in published if number > 0),
        identical=published == undisturbed,
    )


def _sound(place: Place, sha256: str) -> bool:
    """Whether the bytes are there, read where they are stored and not from a copy."""
    try:
        with tempfile.TemporaryDirectory() as fresh:
            return digest(open_blobs(place.settings, cache_folder=Path(fresh)).path(sha256)) == sha256
    except FileNotFoundError:
        return False
