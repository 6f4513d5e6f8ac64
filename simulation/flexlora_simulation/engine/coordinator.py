"""The coordinator in this process: the product's own database, storage, state machine and worker, without the web in between.

Its folder is that of a real coordinator: `flexlora-server serve` on it shows the rounds, `flexlora-client export` its adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import adapters, clients, rounds, runs, uploads
from flexlora_server.database.queries.presence import mark_seen
from flexlora_server.database.schema import Client, Event
from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle import accept_upload, transitions
from flexlora_server.lifecycle.find_task import find_task
from flexlora_server.lifecycle.serve_slice import slice_blob
from flexlora_server.lifecycle.validation import check_declaration, check_spec
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker.worker import Worker
from flexlora_shared.messages.clients import Declaration, Enrollment, TokenRequest
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import Receipt, UploadCreate
from flexlora_shared.problems import Code
from flexlora_simulation.errors import SimulationError


@dataclass(frozen=True)
class Assigned:
    """A participant that a round waits for: its place in an attempt, when it was given, and whether its update came."""

    client: str
    round: int
    attempt: int
    accepted: bool


@dataclass(frozen=True)
class Snapshot:
    """The run now. `wait_until`: the instant at which time alone may move it, None where it waits for something else."""

    run_state: str
    reason: str | None
    round: machine.RoundView | None
    wait_until: datetime | None


class Coordinator:
    """One run of a coordinator whose time is `clock`, seconds since the epoch."""

    def __init__(self, folder: Path, run: str, clock: Callable[[], float], threads: int = 1) -> None:
        self._settings = Settings(
            data_dir=folder,
            blobs_url=None,
            database_url=None,
            ray_address=None,
            aggregation_threads=threads,
            aggregation_device="cpu",
            presence_window=15.0,
            lease_seconds=3600.0,
        )
        self._store = Store(self._settings.url, clock)
        self._store.migrate()
        self._blobs = open_blobs(self._settings)
        self._worker = Worker(self._store, self._blobs, self._settings)
        self._run = run

    def close(self) -> None:
        """Close the database."""
        self._store.close()

    def begin(self, spec: RunSpec, declarations: Mapping[str, Declaration]) -> None:
        """Create and start the run with these participants, by name; what is there already is left as it is.

        Raises:
            SimulationError: the run's definition or a declaration is refused.
        """
        try:
            check_spec(spec)
            with self._store.transaction() as tx:
                if all(run.name != self._run for run in runs.list_all(tx)):
                    run = runs.create(tx, spec)
                    for name, declaration in declarations.items():
                        check_declaration(spec, declaration)
                        token = clients.create_token(tx, TokenRequest()).token
                        client = clients.enroll(tx, Enrollment(token=token, name=name)).client_id
                        rounds.declare(tx, run, client, declaration, None)
                    transitions.start(tx, run)
                elif runs.spec_of(runs.get(tx, self._run)) != spec:
                    raise SimulationError("the folder holds a run of another definition; give a new folder")
        except Refusal as refusal:
            raise SimulationError(f"run: {refusal}") from refusal

    def client_names(self) -> dict[str, str]:
        """The participants' names by client id."""
        with self._store.reading() as tx:
            return {client.id: client.name for client in tx.session.scalars(select(Client))}

    def last_instant(self) -> datetime | None:
        """When the last thing happened, None before the first."""
        with self._store.reading() as tx:
            return tx.session.scalar(select(func.max(Event.at)))

    def snapshot(self) -> Snapshot:
        """The run now."""
        with self._store.reading() as tx:
            run = runs.get(tx, self._run)
            spec, round_ = runs.spec_of(run), rounds.current(tx, self._run)
            if round_ is None or run.state in machine.FINAL_STATES:
                return Snapshot(run.state, run.reason, None, None)
            view = rounds.round_view(tx, run, round_)
            until = None
            if round_.state == "OPEN":
                present = rounds.present_clients(tx, round_, self._settings.presence_window)
                decision = machine.gather(spec, view, present, tx.now, uploads.clients_carried_over(tx, round_))
                until = decision.until if isinstance(decision, machine.Wait) else None
            elif round_.state == "COLLECTING":
                waiting = machine.judge(spec, view, tx.now)
                until = waiting.until if isinstance(waiting, machine.Wait) else None
            return Snapshot(run.state, run.reason, view, until)

    def poll(self, present: Sequence[str]) -> None:
        """These participants (client ids) ask for work, and the round moves on where it is due."""
        with self._store.transaction() as tx:
            run = runs.lock(tx, self._run)
            mark_seen(tx, self._run, present)
            transitions.advance(tx, run, self._settings.presence_window)

    def assigned(self) -> list[Assigned]:
        """Everybody who was ever given a place in a round, in the order of the rounds."""
        with self._store.reading() as tx:
            found = []
            for round_ in reversed(rounds.list_latest(tx, self._run)):
                accepted = {row.client_id for row in uploads.list_of_round(tx, round_) if row.state == "ACCEPTED"}
                for row in rounds.list_assignments(tx, round_):
                    found.append(Assigned(row.client_id, round_.number, round_.attempt, row.client_id in accepted))
            return found

    def task(self, client: str) -> Task | None:
        """What this participant is to train now."""
        return find_task(self._store, self._blobs, self._run, client, None)[0]

    def file(self, sha256: str) -> Path:
        """The file of a slice."""
        return self._blobs.path(sha256)

    def slice(self, round: int, rank: int) -> Path:
        """The file of the slice of this rank that a round published."""
        return self.file(slice_blob(self._store, self._blobs, self._run, round, rank, {}).sha256)

    def adapter_sha256(self, round: int) -> str:
        """The digest of the global adapter that a round published."""
        with self._store.reading() as tx:
            return adapters.get_published(tx, self._run, round).sha256

    def deliver(self, client: str, round: int, upload: UploadCreate, file: Path) -> Receipt | None:
        """Upload an update; None where it comes too late to count.

        Raises:
            SimulationError: it is refused for another reason.
        """
        try:
            status, _ = accept_upload.announce(self._store, self._run, round, client, None, upload)
            if status.state != "ACCEPTED" and status.offset < upload.size:
                self._write(status.id, file)
            return accept_upload.commit(self._store, self._blobs, self._settings, status.id, client)
        except Refusal as refusal:
            if refusal.problem.code in {Code.ROUND_CLOSED, Code.RUN_OVER}:
                return None
            raise SimulationError(f"round {round}: an update was refused: {refusal}") from refusal

    def _write(self, upload: str, file: Path) -> None:
        incoming = self._blobs.uploads
        with incoming.open_part(upload, 0, lambda written: None) as target:
            target.write(file.read_bytes())
            end, part = incoming.finish_part(upload, 0, target)
            with self._store.transaction() as tx:
                uploads.advance(tx, upload, 0, end, part)

    def aggregate(self) -> None:
        """Aggregate the round that waits for it, as a worker does."""
        self._worker.step()
