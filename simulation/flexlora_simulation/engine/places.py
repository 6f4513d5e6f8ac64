"""Who has a place in a round, what it is to train there, and what became of that so far: as the coordinator's database says."""

from dataclasses import dataclass, field

from sqlalchemy import select

from flexlora_server.database.schema import Assignment, Client, Round, Upload
from flexlora_server.database.transactions import Store
from flexlora_server.lifecycle.find_task import task_message
from flexlora_server.lifecycle.serve_slice import slice_blob
from flexlora_server.storage import Blob, BlobStore
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Failure, Task
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import held_ranks


@dataclass(frozen=True)
class Place:
    """A participant's place in one attempt at a round.

    client: its id. sent: its update of this round, where one was accepted, and counts_in the round that it counts in.
    failure: why it does not finish. open_upload: the id of an upload that was announced and has not arrived.
    """

    client: str
    name: str
    task: Task
    sent: UploadCreate | None = None
    counts_in: int | None = None
    failure: Failure | None = None
    open_upload: str | None = None


@dataclass
class Places:
    """Reads places; the slices that they are served are looked up once for each round and rank."""

    store: Store
    blobs: BlobStore
    run: str
    _slices: dict[tuple[int, str], Blob] = field(default_factory=dict)

    def read(self, spec: RunSpec, number: int | None = None) -> list[Place]:
        """Those of round `number`, of all rounds where it is None, in the order of rounds, attempts and names."""
        given = select(Assignment, Round, Client.name).join(Round, Round.id == Assignment.round_id)
        given = given.join(Client, Client.id == Assignment.client_id).where(Round.run == self.run)
        sent = select(Upload, Round.number).join(Round, Round.id == Upload.round_id).where(Round.run == self.run)
        if number is not None:
            given, sent = given.where(Round.number == number), sent.where(Round.number == number)
        with self.store.reading() as tx:
            open_or_accepted = sent.where(Upload.state.in_(("OPEN", "ACCEPTED")))
            uploads = {(row.Upload.client_id, row.number): row.Upload for row in tx.session.execute(open_or_accepted)}
            rows = tx.session.execute(given.order_by(Round.number, Round.attempt, Client.name)).all()
        return [
            self._place(spec, round_, assignment, name, uploads.get((assignment.client_id, round_.number)))
            for assignment, round_, name in rows
        ]

    def _place(self, spec: RunSpec, round_: Round, assignment: Assignment, name: str, upload: Upload | None) -> Place:
        blob = self._slice(round_.number - 1, assignment)
        accepted = upload if upload is not None and upload.state == "ACCEPTED" else None
        return Place(
            assignment.client_id,
            name,
            task_message(spec, round_, assignment, blob.sha256, blob.size),
            None if accepted is None else UploadCreate.model_validate(accepted.announced),
            None if accepted is None else accepted.counts_in,
            None if assignment.failure is None else Failure.model_validate(assignment.failure),
            upload.id if upload is not None and upload.state == "OPEN" else None,
        )

    def _slice(self, published: int, assignment: Assignment) -> Blob:
        held = held_ranks(assignment.rank, assignment.rank_pattern, assignment.hold_rank)
        key = published, repr(held)
        if key not in self._slices:
            self._slices[key] = slice_blob(self.store, self.blobs, self.run, published, *held)
        return self._slices[key]
