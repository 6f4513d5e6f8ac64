"""What the lobby's looks do in the database, each in one thread: write who is present, move on what is due, read what is news.

A run is asked for what is due when something about it has changed or somebody new is there, else once in `SETTLED` seconds: that
many runs wait costs little.
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
from flexlora_server.state_machine import OVER

log = logging.getLogger("flexlora.server")
SETTLED = 1.0  # seconds between two questions to a run in which nothing has changed
BATCH = 1000  # keys in one statement


@dataclass(frozen=True)
class View:
    """What is known of a run: its version, whether it is over, and the participants that have work.

    `with_work` is read once for a round's assignments, whose `place` it belongs to. The lobby takes out who was looked up and
    has none: it only ever holds too many, and each of them costs one look-up.
    """

    version: int
    over: bool
    place: tuple[int, str, int] | None = None
    with_work: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Task:
    """What a look is given: who polls in which run, the runs where some are new, and the ids of the keys relied on."""

    seen: Mapping[str, Sequence[str]]
    newcomers: frozenset[str]
    keys: frozenset[str]


@dataclass(frozen=True)
class News:
    """What a look found: the views that changed, and which keys are still good; None where none has ended."""

    views: dict[str, View]
    good_keys: frozenset[str] | None


class Lookout:
    """Looks at the database; one look at a time."""

    def __init__(self, store: Store, presence_window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._window, self._clock = store, presence_window, clock
        self._views: dict[str, View] = {}
        self._asked: dict[str, tuple[int, float]] = {}  # the run's version when it was asked, and when
        self._ended = -1  # keys that have ended, at the last look

    def look(self, task: Task) -> News:
        """Write presence, advance what is due, and read what has changed."""
        if task.seen:
            with self._store.transaction() as tx:
                for run, clients in task.seen.items():
                    presence.saw(tx, run, clients)
        with self._store.reading() as tx:
            ended, good = self._good_keys(tx, task.keys)
            active = self._active(tx, task)
            going = [run.name for run in active if good is not None or self._unsettled(run, task)]
            views = {} if going else self._news(tx, active)
        for name in going:
            self._advance(name)
        if going:
            with self._store.reading() as tx:
                views = self._news(tx, self._active(tx, task))
        self._views.update(views)
        self._ended = ended
        return News(views, good)

    def _good_keys(self, tx: Tx, keys: frozenset[str]) -> tuple[int, frozenset[str] | None]:
        """How many keys have ended; and those of `keys` that have not, None where no key at all has since the last look."""
        ended = tx.session.scalar(select(func.count()).select_from(ApiKey).where(ApiKey.revoked_at.is_not(None))) or 0
        if ended == self._ended:
            return ended, None
        asked, good = sorted(keys), set[str]()
        for start in range(0, len(asked), BATCH):
            some = ApiKey.id.in_(asked[start : start + BATCH])
            good.update(tx.session.scalars(select(ApiKey.id).where(some, ApiKey.revoked_at.is_(None))))
        return ended, frozenset(good)

    def _unsettled(self, run: Run, task: Task) -> bool:
        now = self._clock()
        version, at = self._asked.get(run.name, (-1, now))
        if version == run.version and run.name not in task.newcomers and now - at < SETTLED:
            return False
        self._asked[run.name] = (run.version, now)
        return True

    def _advance(self, name: str) -> None:
        """Move a run on, where something is due: only then is a writing transaction opened."""
        try:
            with self._store.reading() as tx:
                found = transitions.due(tx, runs.get(tx, name), self._window)
            if found is not None:
                with self._store.transaction() as tx:
                    transitions.apply(tx, runs.lock(tx, name), found)
        except OperationalError as error:  # a lock that somebody holds; without a database the next statement fails too
            log.warning("run %s is moved on later: %s", name, error)
        except SQLAlchemyError:
            raise
        except Exception:  # a defect met in one run must not hold up the others
            log.exception("run %s cannot be moved on", name)

    def _active(self, tx: Tx, task: Task) -> list[Run]:
        """Runs that go on, those that were going on when last seen, and those never seen in which somebody waits.

        The last may have begun and ended since the look before.
        """
        watched = [name for name, view in self._views.items() if not view.over]
        watched += [name for name in task.seen if name not in self._views]
        wanted = select(Run).where(or_(Run.state.in_(("RUNNING", "PAUSED")), Run.name.in_(watched)))
        return list(tx.session.scalars(wanted.order_by(Run.name)))

    def _news(self, tx: Tx, active: Sequence[Run]) -> dict[str, View]:
        """The views of the runs that have changed since they were last seen."""
        return {run.name: self._view(tx, run) for run in active if self._changed(run)}

    def _changed(self, run: Run) -> bool:
        known = self._views.get(run.name)
        return known is None or known.version != run.version

    def _view(self, tx: Tx, run: Run) -> View:
        round_, known = rounds.current(tx, run.name), self._views.get(run.name)
        over = run.state in OVER
        if round_ is None or over:
            return View(run.version, over)
        assigned = select(func.count()).select_from(Assignment).where(Assignment.round_id == round_.id)
        place = (round_.id, round_.state, tx.session.scalar(assigned) or 0)
        if known is not None and known.place == place:
            return View(run.version, over, place, known.with_work)
        return View(run.version, over, place, set(rounds.waiting_clients(tx, run.name)))
