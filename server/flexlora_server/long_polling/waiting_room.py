"""Where idle agents and event streams wait: no thread and no database connection each.

One task looks at the database, a few times a second or when poked (`lookout`), and wakes exactly those for whom there is news.
Looks take a fifth of the time at most, however many there are to wait and however much is poked.
"""

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.database.transactions import Store
from flexlora_server.long_polling.key_cache import Keyring
from flexlora_server.long_polling.poller import Lookout, News, Task, View

log = logging.getLogger("flexlora.server")
TICK = 0.5  # seconds between looks at the database while nothing pokes
PAUSE = 0.05  # seconds between looks however much is poked
SHARE = 4  # times as long as a look has taken is the pause after it, at least
LONGEST = 1.0  # seconds of that pause at most
RETRY = 2.0  # seconds before a database that failed is looked at again
PRESENCE_EVERY = (
    5.0  # seconds between writes of everyone who is waiting; a third of the presence window where that is less
)

Waiting = asyncio.Future[bool]


class Lobby:
    """Holds waiting requests until their run has something for them. Belongs to one event loop."""

    def __init__(self, store: Store, presence_window: float) -> None:
        self._lookout = Lookout(store, presence_window)
        self.keyring = Keyring()
        self._presence_every = min(PRESENCE_EVERY, presence_window / 3)
        self._views: dict[str, View] = {}
        self._agents: defaultdict[str, defaultdict[str, set[Waiting]]] = defaultdict(lambda: defaultdict(set))
        self._watchers: defaultdict[str, set[Waiting]] = defaultdict(set)
        self._poked = asyncio.Event()
        self._closing, self._closed = False, asyncio.Event()
        self._admitted: set[tuple[str, str]] = set()
        self._arrived: defaultdict[str, set[str]] = defaultdict(set)
        self._recent: defaultdict[str, set[str]] = defaultdict(
            set
        )  # seen since everyone's presence was written, or then
        self._newcomers: set[str] = set()
        self._presence_due = 0.0

    @property
    def waiting(self) -> int:
        """Agents that wait for work now."""
        return sum(map(len, self._agents.values()))

    def poke(self) -> None:
        """Look at the database now; to be called in the loop's thread."""
        self._poked.set()

    def close(self) -> None:
        """Let `keep` end; to be called in the loop's thread."""
        self._closing = True
        self._closed.set()
        self.poke()

    def admit(self, run: str, client: str) -> None:
        """Remember that this participant has declared in the run: a declaration is never taken back."""
        self._admitted.add((run, client))

    def admitted(self, run: str, client: str) -> bool:
        """Whether this participant is known to have declared in a run that is not known to be over."""
        view = self._views.get(run)
        return view is not None and not view.over and (run, client) in self._admitted

    async def work(self, run: str, client: str, seconds: float, gone: asyncio.Future[None], seen: int = -1) -> bool:
        """Wait until this participant may have work, its keys or the run are over: True.

        False after `seconds` without any of it, or when it is `gone`. `seen` is the run's version that the caller has looked
        at: what the lobby knows of it or before is no news.
        """
        self._arrive(run, client)
        view = self._views.get(run)
        if view is not None and view.version > seen:
            if view.over or client in view.with_work:
                return True
        elif view is not None:
            view.with_work.discard(client)
        agents = self._agents[run]
        try:
            return await _wait(agents[client], seconds, gone)
        finally:
            if not agents[client]:
                del agents[client]

    def _arrive(self, run: str, client: str) -> None:
        self._arrived[run].add(client)
        if client not in self._recent[run]:
            self._newcomers.add(run)
            self.poke()

    async def change(self, run: str, version: int, seconds: float) -> None:
        """Return when the run has changed since `version`, at the latest after `seconds`."""
        view = self._views.get(run)
        if view is None or view.version <= version:
            await _wait(self._watchers[run], seconds)

    async def keep(self) -> None:
        """Look after the lobby until it is closed. A database that fails is tried again; nobody is lost meanwhile."""
        clock, own = asyncio.get_running_loop().time, CapacityLimiter(1)  # a thread that busy requests do not take
        while not self._closing:
            await self._until_poked()
            started = clock()
            try:
                self._tell(await to_thread.run_sync(self._lookout.look, self._task(), limiter=own))
            except SQLAlchemyError as error:
                log.error("the database does not answer, trying again in %g s: %s", RETRY, error)
                self._presence_due = 0.0  # what was to be written may not have been
                await self._rest(RETRY)
                continue
            except Exception:
                log.exception("the lobby failed; it goes on")
            await self._rest(min(max(PAUSE, SHARE * (clock() - started)), LONGEST))

    async def _rest(self, seconds: float) -> None:
        if not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()

    async def _until_poked(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK):
                await self._poked.wait()
        self._poked.clear()

    def _task(self) -> Task:
        """Whose presence to write now: arrivals at once, everyone who waits every few seconds."""
        seen, self._arrived = self._arrived, defaultdict(set)
        newcomers, self._newcomers = frozenset(self._newcomers), set()
        now = asyncio.get_running_loop().time()
        if now >= self._presence_due:
            self._presence_due = now + self._presence_every
            for run, agents in self._agents.items():
                seen[run].update(agents)
            self._recent.clear()
        for run, clients in seen.items():
            self._recent[run] |= clients
        return Task({run: tuple(clients) for run, clients in seen.items() if clients}, newcomers, self.keyring.ids())

    def _tell(self, news: News) -> None:
        self._views.update(news.views)
        for name, view in news.views.items():
            _wake(self._watchers[name])
            agents = self._agents[name]
            for client in list(agents) if view.over else view.with_work & agents.keys():
                _wake(agents[client])
        if news.good_keys is not None:
            ended = self.keyring.drop(news.good_keys)
            for agents in self._agents.values():
                for client in ended & agents.keys():
                    _wake(agents[client])


def _wake(waiting: set[Waiting]) -> None:
    for future in waiting:
        _resolve(future, True)


def _resolve(future: Waiting, outcome: bool) -> None:
    if not future.done():
        future.set_result(outcome)


async def _wait(waiting: set[Waiting], seconds: float, gone: asyncio.Future[None] | None = None) -> bool:
    loop = asyncio.get_running_loop()
    future: Waiting = loop.create_future()
    waiting.add(future)
    timer = loop.call_later(seconds, _resolve, future, False)
    if gone is not None:
        gone.add_done_callback(lambda _: _resolve(future, False))
    try:
        return await future
    finally:
        timer.cancel()
        waiting.discard(future)
