"""Where idle agents and event streams wait: no thread and no database connection each.

One task looks at the database, a few times a second or when poked: it writes who is waiting, moves on the rounds
whose time has come, reads which runs changed (by their version) and which participants have work, and wakes exactly those.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import or_, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from flexlora_server import progress
from flexlora_server.records import rounds, runs
from flexlora_server.rounds import OVER
from flexlora_server.store import Store, Tx
from flexlora_server.tables import Run

log = logging.getLogger("flexlora.server")
TICK = 0.5  # seconds between looks at the database while nothing pokes
PAUSE = 0.05  # seconds between looks however much is poked
RETRY = 2.0  # seconds before a database that failed is looked at again
PRESENCE_EVERY = 5.0  # seconds between writes of everyone who is waiting

K = TypeVar("K", bound=Hashable)
Waiting = defaultdict[K, set[asyncio.Future[None]]]


@dataclass(frozen=True)
class _View:
    """What is known of a run: its version, whether it is over, and the participants that have work."""

    version: int
    over: bool
    with_work: frozenset[str]


class Lobby:
    """Holds waiting requests until their run has something for them. Belongs to one event loop."""

    def __init__(self, store: Store, presence_window: float) -> None:
        self._store, self._window = store, presence_window
        self._views: dict[str, _View] = {}
        self._agents: Waiting[tuple[str, str]] = defaultdict(set)
        self._watchers: Waiting[str] = defaultdict(set)
        self._poked = asyncio.Event()
        self._closing = False
        self._admitted: set[tuple[str, str]] = set()
        self._arrived: set[tuple[str, str]] = set()
        self._presence_due = 0.0

    @property
    def waiting(self) -> int:
        """Agents that wait for work now."""
        return len(self._agents)

    def poke(self) -> None:
        """Look at the database now; to be called in the loop's thread."""
        self._poked.set()

    def close(self) -> None:
        """Let `keep` end; to be called in the loop's thread."""
        self._closing = True
        self.poke()

    def admit(self, run: str, client: str) -> None:
        """Remember that this participant has declared in the run: a declaration is never taken back."""
        self._admitted.add((run, client))

    def admitted(self, run: str, client: str) -> bool:
        """Whether this participant is known to have declared in a run that is not known to be over."""
        view = self._views.get(run)
        return view is not None and not view.over and (run, client) in self._admitted

    async def work(self, run: str, client: str, seconds: float, seen: int = -1) -> bool:
        """Wait until this participant may have work or the run is over: True; False after `seconds` without either.

        `seen` is the run's version that the caller has looked at: what the lobby knows of it or before is no news.
        """
        self._arrived.add((run, client))
        view = self._views.get(run)
        if view is not None and view.version > seen and (view.over or client in view.with_work):
            return True
        self.poke()
        return await _wait(self._agents, (run, client), seconds)

    async def change(self, run: str, version: int, seconds: float) -> None:
        """Return when the run has changed since `version`, at the latest after `seconds`."""
        view = self._views.get(run)
        if view is not None and view.version > version:
            return
        await _wait(self._watchers, run, seconds)

    async def keep(self) -> None:
        """Look after the lobby until it is closed. A database that fails is tried again; nobody is lost meanwhile."""
        while not self._closing:
            try:
                async with asyncio.timeout(TICK):
                    await self._poked.wait()
            except TimeoutError:
                pass
            self._poked.clear()
            try:
                self._wake(await run_in_threadpool(self._look, self._seen()))
            except SQLAlchemyError as error:
                log.error("the database does not answer, trying again in %g s: %s", RETRY, error)
                await asyncio.sleep(RETRY)
            except Exception:
                log.exception("the lobby failed; it goes on")
            await asyncio.sleep(PAUSE)

    def _seen(self) -> list[tuple[str, str]]:
        """Whose presence to write now: new arrivals at once, everyone who waits every few seconds."""
        seen, self._arrived = self._arrived, set()
        now = asyncio.get_running_loop().time()
        if now >= self._presence_due:
            self._presence_due = now + PRESENCE_EVERY
            seen = seen | self._agents.keys()
        return sorted(seen)

    def _look(self, seen: list[tuple[str, str]]) -> dict[str, _View]:
        """In a thread: write presence, advance what is due, and read the views that changed."""
        if seen:
            with self._store.transaction() as tx:
                rounds.saw(tx, seen)
        with self._store.reading() as tx:
            going = [run.name for run in self._active(tx)]
        for name in going:
            try:
                self._advance(name)
            except SQLAlchemyError:
                raise
            except Exception:  # a defect met in one run must not hold up the others
                log.exception("run %s cannot be moved on", name)
        with self._store.reading() as tx:
            return {run.name: _view(tx, run) for run in self._active(tx) if self._changed(run)}

    def _advance(self, name: str) -> None:
        """Move a run on, where something is due: only then is a writing transaction opened."""
        with self._store.reading() as tx:
            if progress.due(tx, runs.get(tx, name), self._window) is None:
                return
        with self._store.transaction() as tx:
            progress.advance(tx, runs.lock(tx, name), self._window)

    def _active(self, tx: Tx) -> list[Run]:
        """Runs that go on, and those that were going on when last seen."""
        watched = [name for name, view in self._views.items() if not view.over]
        wanted = select(Run).where(or_(Run.state.in_(("RUNNING", "PAUSED")), Run.name.in_(watched)))
        return list(tx.session.scalars(wanted.order_by(Run.name)))

    def _changed(self, run: Run) -> bool:
        known = self._views.get(run.name)
        return known is None or known.version != run.version

    def _wake(self, views: dict[str, _View]) -> None:
        self._views.update(views)
        for name, view in views.items():
            for future in self._watchers.get(name, ()):
                _resolve(future)
            for key in [key for key in self._agents if key[0] == name and (view.over or key[1] in view.with_work)]:
                for future in self._agents[key]:
                    _resolve(future)


def _view(tx: Tx, run: Run) -> _View:
    return _View(run.version, run.state in OVER, rounds.waiting_clients(tx, run.name))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _wait(waiting: Waiting[K], key: K, seconds: float) -> bool:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting[key].add(future)
    try:
        async with asyncio.timeout(seconds):
            await future
        return True
    except TimeoutError:
        return False
    finally:
        waiting[key].discard(future)
        if not waiting[key]:
            del waiting[key]
