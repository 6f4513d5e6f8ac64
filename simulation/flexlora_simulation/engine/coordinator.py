"""The coordinator in this process: the product's own database, storage, state machine and worker, without the web in between.

Its folder is that of a real coordinator: `flexlora-server serve` on it shows the rounds, `flexlora-client export` its adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server import state_machine as machine
from flexlora_server.api.status_views import round_detail
from flexlora_server.database.queries import adapters, clients, rounds, runs, uploads
from flexlora_server.database.queries.presence import mark_seen
from flexlora_server.database.schema import Client, Event, Round
from flexlora_server.database.transactions import Store, Tx
from flexlora_server.errors import PluginUnusable, Refusal
from flexlora_server.lifecycle import transitions
from flexlora_server.lifecycle.serve_slice import slice_blob
from flexlora_server.lifecycle.validation import check_declaration, check_spec
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker import leases
from flexlora_server.worker.leases import Lease
from flexlora_server.worker.worker import Worker
from flexlora_shared.messages.clients import Declaration, Enrollment, TokenRequest
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import RoundDetail
from flexlora_simulation.engine.places import Place, Places
from flexlora_simulation.engine.sending import Sending
from flexlora_simulation.errors import SimulationError

THIS_INSTANT_S = 1e-6  # presence is said anew at every instant at which the coordinator looks at it
OF_THE_WORKER = (SQLAlchemyError, OSError, PluginUnusable)  # what fails beside the aggregation itself


@dataclass(frozen=True)
class Snapshot:
    """The run now.

    round: None where the run is over. why: what the round waits for, a sentence; empty where it moves on. until: the instant at
    which time alone may move it, None where it waits for something else.
    """

    run_state: str
    reason: str | None
    round: machine.RoundView | None = None
    why: str = ""
    until: datetime | None = None


@dataclass(frozen=True)
class Published:
    """A round that was published: its counts, and `seconds` that its aggregation took."""

    view: machine.RoundView
    at: datetime
    adapter_sha256: str
    seconds: float


class Coordinator:
    """One run of a coordinator whose time is `clock`, seconds since the epoch."""

    def __init__(self, folder: Path, spec: RunSpec, clock: Callable[[], float]) -> None:
        self._settings = Settings(
            data_dir=folder,
            blobs_url=None,
            database_url=None,
            ray_address=None,
            aggregation_threads=1,
            aggregation_device="cpu",
            presence_window=THIS_INSTANT_S,
            lease_seconds=3600.0,
        )
        self._store = Store(self._settings.url, clock)
        self._store.migrate()
        self._blobs = open_blobs(self._settings)
        self._worker = Worker(self._store, self._blobs, self._settings)
        self._places = Places(self._store, self._blobs, spec.name)
        self._spec, self._run = spec, spec.name
        self.sending = Sending(self._store, self._blobs, self._settings, spec.name)

    def close(self) -> None:
        """Close the database."""
        self._store.close()

    def begin(self, declarations: Mapping[str, Declaration]) -> None:
        """Create and start the run with these participants, by name; what is there already goes on.

        Raises:
            SimulationError: the run's definition or a declaration is refused.
        """
        try:
            check_spec(self._spec)
            with self._store.transaction() as tx:
                if all(run.name != self._run for run in runs.list_all(tx)):
                    self._create(tx, declarations)
                elif runs.spec_of(runs.get(tx, self._run)) != self._spec:
                    raise SimulationError("the folder holds a run of another definition; give a new folder")
                else:
                    self._give_back(tx)
        except Refusal as refusal:
            raise SimulationError(f"run: {refusal}") from refusal

    def _create(self, tx: Tx, declarations: Mapping[str, Declaration]) -> None:
        run = runs.create(tx, self._spec)
        for name, declaration in declarations.items():
            check_declaration(self._spec, declaration)
            token = clients.create_token(tx, TokenRequest()).token
            client = clients.enroll(tx, Enrollment(token=token, name=name)).client_id
            rounds.declare(tx, run, client, declaration, None)
        transitions.start(tx, run)

    def _give_back(self, tx: Tx) -> None:
        """A round that was being aggregated by a process that is no more, or that failed, is aggregated again."""
        round_ = rounds.current(tx, self._run)
        if round_ is None or round_.state not in {"AGGREGATING", "FAILED"}:
            return
        if round_.lease_holder is not None:
            leases.release(tx, Lease(round_.id, self._run, round_.number, round_.lease_token), None)
        elif round_.state == "FAILED" or (round_.lease_until is not None and not round_.failures):
            transitions.retry(tx, runs.lock(tx, self._run), round_, ())

    def clients(self) -> dict[str, str]:
        """The participants' client ids by name."""
        with self._store.reading() as tx:
            return {client.name: client.id for client in tx.session.scalars(select(Client))}

    def last_instant(self) -> datetime | None:
        """When the last thing happened, None before the first."""
        with self._store.reading() as tx:
            return tx.session.scalar(select(func.max(Event.at)))

    def snapshot(self) -> Snapshot:
        """The run now."""
        with self._store.reading() as tx:
            return self._snapshot(tx)

    def poll(self, present: Sequence[str]) -> Snapshot:
        """These participants (client ids) ask for work, and the round moves on where it is due; the run then."""
        with self._store.transaction() as tx:
            run = runs.lock(tx, self._run)
            mark_seen(tx, self._run, present)
            transitions.advance(tx, run, self._settings.presence_window)
            return self._snapshot(tx)

    def _snapshot(self, tx: Tx) -> Snapshot:
        run, round_ = runs.get(tx, self._run), rounds.current(tx, self._run)
        if round_ is None or run.state in machine.FINAL_STATES:
            return Snapshot(run.state, run.reason)
        view = rounds.round_view(tx, run, round_)
        decision: object = None
        if round_.state == "OPEN":
            present = rounds.present_clients(tx, round_, self._settings.presence_window)
            decision = machine.gather(self._spec, view, present, tx.now, uploads.clients_carried_over(tx, round_))
        elif round_.state == "COLLECTING":
            decision = machine.judge(self._spec, view, tx.now)
        if isinstance(decision, machine.Wait):
            return Snapshot(run.state, run.reason, view, decision.why, decision.until)
        return Snapshot(run.state, run.reason, view)

    def places(self, number: int | None = None) -> list[Place]:
        """The participants' places in round `number`; None: in all rounds."""
        return self._places.read(self._spec, number)

    def file(self, sha256: str) -> Path:
        """The file of a slice."""
        return self._blobs.path(sha256)

    def slice(self, round: int, rank: int, pattern: Mapping[str, int]) -> Path:
        """The file of the slice that a round published at these ranks; the pattern is none or one that is served."""
        blob = slice_blob(self._store, self._blobs, self._run, round, rank, pattern, any_pattern=True)
        return self.file(blob.sha256)

    def published(self) -> list[Published]:
        """All published rounds, oldest first."""
        with self._store.reading() as tx:
            found = [round_ for round_ in rounds.list_latest(tx, self._run) if round_.state == "PUBLISHED"]
            return [self._published(tx, round_) for round_ in reversed(found)]

    def published_round(self, number: int) -> Published:
        """A published round."""
        with self._store.reading() as tx:
            return self._published(tx, rounds.latest(tx, self._run, number))

    def round_detail(self, round: int) -> RoundDetail:
        """A round with the figures of its modules, as the coordinator tells them."""
        with self._store.reading() as tx:
            found = rounds.latest(tx, self._run, round)
            return round_detail(tx, runs.get(tx, self._run), found, self._settings.presence_window, operator=False)

    def _published(self, tx: Tx, round_: Round) -> Published:
        assert round_.published_at is not None, "it is published"
        assert round_.aggregation_seconds is not None, "so it was aggregated"
        view = rounds.round_view(tx, runs.get(tx, self._run), round_)
        sha256 = adapters.get_published(tx, self._run, round_.number).sha256
        return Published(view, round_.published_at, sha256, round_.aggregation_seconds)

    def aggregate(self) -> None:
        """Aggregate the round that waits for it, as a worker does.

        Raises:
            SimulationError: the disk or a plug-in fails, not the aggregation itself, which may be tried again.
        """
        try:
            self._worker.step()
        except OF_THE_WORKER as error:
            raise SimulationError(
                f"a round could not be aggregated: {error}; mend that, then start the same experiment again: it goes on"
            ) from error
