"""What participants send to the coordinator, as its REST interface does it: uploads in two steps, and failures."""

from dataclasses import dataclass
from pathlib import Path

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import rounds, runs, uploads
from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle import accept_upload, transitions
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore
from flexlora_shared.messages.tasks import Failure
from flexlora_shared.messages.uploads import Receipt, UploadCreate
from flexlora_shared.problems import Code
from flexlora_simulation.errors import SimulationError

TOO_LATE = {Code.ROUND_CLOSED, Code.RUN_OVER}


@dataclass(frozen=True)
class Sending:
    """The updates and failures of one run's participants, which are given by their client ids."""

    store: Store
    blobs: BlobStore
    settings: Settings
    run: str

    def is_taken(self, number: int) -> bool:
        """Whether an update that was trained for this round would count, now."""
        with self.store.reading() as tx:
            run, round_ = runs.get(tx, self.run), rounds.latest(tx, self.run, number)
            view, candidate = rounds.round_view(tx, run, round_), machine.Candidate(sha256="", assigned=True)
            decision = machine.admit(runs.spec_of(run), view, candidate, rounds.next_open_number(tx, round_), tx.now)
        return isinstance(decision, machine.Accept)

    def announce(self, client: str, number: int, upload: UploadCreate) -> str | None:
        """Announce an update; the upload's id, None where it is too late. Raises: SimulationError, where it is refused."""
        try:
            return accept_upload.announce(self.store, self.run, number, client, None, upload)[0].id
        except Refusal as refusal:
            _check_too_late(refusal, number)
            return None

    def deliver(self, client: str, number: int, upload: str, file: Path) -> Receipt | None:
        """Send an announced update's bytes; None where it is too late. Raises: SimulationError, where it is refused."""
        try:
            self._write(upload, client, file)
            return accept_upload.commit(self.store, self.blobs, self.settings, upload, client)
        except Refusal as refusal:
            _check_too_late(refusal, number)
            return None

    def _write(self, upload: str, client: str, file: Path) -> None:
        with self.store.reading() as tx:
            row = uploads.get_owned(tx, upload, client)
            uploads.require_open(tx, row)
        if row.offset == row.size:  # sent before the simulation was killed
            return
        incoming = self.blobs.uploads
        with incoming.open_part(upload, 0, lambda written: None) as target:
            target.write(file.read_bytes())
            end, part = incoming.finish_part(upload, 0, target)
            with self.store.transaction() as tx:
                uploads.advance(tx, upload, 0, end, part)

    def fail(self, client: str, number: int, failure: Failure) -> None:
        """Report that a participant cannot finish its task; nothing changes where its round is over."""
        with self.store.transaction() as tx:
            run, round_ = runs.lock(tx, self.run), rounds.latest(tx, self.run, number)
            transitions.record_failed_participant(tx, run, round_, client, failure, self.settings.presence_window)


def _check_too_late(refusal: Refusal, number: int) -> None:
    if refusal.problem.code not in TOO_LATE:
        raise SimulationError(f"round {number}: an update was refused: {refusal}") from refusal
