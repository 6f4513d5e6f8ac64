"""One poll of the database for the waiting room, in one thread: writes presence, applies due transitions, reads what changed.

A run is checked for a due transition when it has changed or a participant is new in it, else once in `RECHECK_EVERY_S` seconds,
so that many waiting runs cost little.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, or_, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from flexlora_server.database.queries import presence, rounds, runs
from flexlora_server.database.schema import ApiKey, Assignment, Run
from flexlora_server.database.transactions import Store, Tx
from flexlora_server.lifecycle import transitions
from flexlora_server.state_machine import FINAL_STATES

log = logging.getLogger("flexlora.server")
RECHECK_EVERY_S = 1.0  # between two checks of a run in which nothing has changed
KEYS_PER_QUERY = 1000


@dataclass(frozen=True)
class RunSnapshot:
    """What the last poll read of a run: its version, whether it is over, and the participants that have work.

    `clients_with_work` is read once for each set of assignments, which `assignments_key` (round id, state, how many times one
    was given) names. The waiting room takes out a client that asked and had none: the set only ever holds too many, and each
    costs one query.
    """

    version: int
    over: bool
    assignments_key: tuple[int, str, int] | None = None
    clients_with_work: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class PollRequest:
    """What a poll is given: the clients seen in each run, the runs where some are new, the ids of the cached keys."""

    clients_by_run: Mapping[str, Sequence[str]]
    runs_with_newcomers: frozenset[str]
    key_ids: frozenset[str]


@dataclass(frozen=True)
class PollResult:
    """What a poll read: the snapshots that changed, and which key ids are still valid; None where no key was revoked.

    `instances`: by run and client, of the clients seen, the instance of the agent that declared last.
    """

    snapshots: dict[str, RunSnapshot]
    valid_keys: frozenset[str] | None
    instances: dict[str, dict[str, str | None]]


class Poller:
    """Polls the database; one poll at a time."""

    def __init__(self, store: Store, presence_window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._window, self._clock = store, presence_window, clock
        self._snapshots: dict[str, RunSnapshot] = {}
        self._checked: dict[str, tuple[int, float]] = {}  # by run: its version at the last check, and when that was
        self._revoked_count = -1  # revoked keys at the last poll

    def poll(self, request: PollRequest) -> PollResult:
        """Write presence, apply due transitions, and read what has changed."""
        instances = self._mark_seen(request)
        with self._store.reading() as tx:
            revoked_count, valid_keys = self._valid_keys(tx, request.key_ids)
            active = self._active_runs(tx, request)
            to_check = [run.name for run in active if valid_keys is not None or self._needs_check(run, request)]
            snapshots = {} if to_check else self._changed_snapshots(tx, active)
        for name in to_check:
            self._advance(name)
        if to_check:
            with self._store.reading() as tx:
                snapshots = self._changed_snapshots(tx, self._active_runs(tx, request))
        self._snapshots.update(snapshots)
        self._revoked_count = revoked_count
        return PollResult(snapshots, valid_keys, instances)

    def _mark_seen(self, request: PollRequest) -> dict[str, dict[str, str | None]]:
        """Write presence; the instances of `PollResult`."""
        if not request.clients_by_run:
            return {}
        with self._store.transaction() as tx:
            return {run: presence.mark_seen(tx, run, clients) for run, clients in request.clients_by_run.items()}

    def _valid_keys(self, tx: Tx, key_ids: frozenset[str]) -> tuple[int, frozenset[str] | None]:
        """How many keys are revoked; and which of `key_ids` are not, None where none was revoked since the last poll."""
        revoked = select(func.count()).select_from(ApiKey).where(ApiKey.revoked_at.is_not(None))
        count = tx.session.scalar(revoked) or 0
        if count == self._revoked_count:
            return count, None
        ordered, valid = sorted(key_ids), set[str]()
        for start in range(0, len(ordered), KEYS_PER_QUERY):
            batch = ApiKey.id.in_(ordered[start : start + KEYS_PER_QUERY])
            valid.update(tx.session.scalars(select(ApiKey.id).where(batch, ApiKey.revoked_at.is_(None))))
        return count, frozenset(valid)

    def _needs_check(self, run: Run, request: PollRequest) -> bool:
        now = self._clock()
        version, at = self._checked.get(run.name, (-1, now))
        unchanged = version == run.version and run.name not in request.runs_with_newcomers
        if unchanged and now - at < RECHECK_EVERY_S:
            return False
        self._checked[run.name] = (run.version, now)
        return True

    def _advance(self, name: str) -> None:
        """Apply a run's due transition, if there is one: only then is a writing transaction opened."""
        try:
            with self._store.reading() as tx:
                transition = transitions.next_transition(tx, runs.get(tx, name), self._window)
            if transition is not None:
                with self._store.transaction() as tx:
                    transitions.apply_transition(tx, runs.lock(tx, name), transition)
        except OperationalError as error:  # a lock that somebody holds; without a database the next statement fails too
            log.warning("run %s is moved on later: %s", name, error)
        except SQLAlchemyError:
            raise
        except Exception:  # a defect met in one run must not hold up the others
            log.exception("run %s cannot be moved on", name)

    def _active_runs(self, tx: Tx, request: PollRequest) -> list[Run]:
        """Runs in progress, those in progress at the last poll, and those without a snapshot in which a client waits.

        The last may have begun and ended since the last poll.
        """
        names = [name for name, snapshot in self._snapshots.items() if not snapshot.over]
        names += [name for name in request.clients_by_run if name not in self._snapshots]
        query = select(Run).where(or_(Run.state.in_(("RUNNING", "PAUSED")), Run.name.in_(names)))
        return list(tx.session.scalars(query.order_by(Run.name)))

    def _changed_snapshots(self, tx: Tx, active: Sequence[Run]) -> dict[str, RunSnapshot]:
        """The snapshots of the runs that have changed since the last poll, by name."""
        return {run.name: self._snapshot(tx, run) for run in active if self._changed(run)}

    def _changed(self, run: Run) -> bool:
        last = self._snapshots.get(run.name)
        return last is None or last.version != run.version

    def _snapshot(self, tx: Tx, run: Run) -> RunSnapshot:
        round_, last = rounds.current(tx, run.name), self._snapshots.get(run.name)
        over = run.state in FINAL_STATES
        if round_ is None or over:
            return RunSnapshot(run.version, over)
        given = select(func.sum(Assignment.given)).where(Assignment.round_id == round_.id)
        key = (round_.id, round_.state, tx.session.scalar(given) or 0)
        if last is not None and last.assignments_key == key:
            return RunSnapshot(run.version, over, key, last.clients_with_work)
        return RunSnapshot(run.version, over, key, set(rounds.clients_with_work(tx, run.name)))
