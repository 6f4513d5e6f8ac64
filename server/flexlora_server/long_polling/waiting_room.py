"""Long-poll hub: parks idle requests and event streams without a thread or a database connection each.

One task polls the database (`poller`), a few times a second or when woken, and resolves exactly the requests that its result
concerns. Polls take a fifth of the time at most, however many requests wait and however often it is woken.
"""

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.database.transactions import Store
from flexlora_server.long_polling.key_cache import KeyCache
from flexlora_server.long_polling.poller import Poller, PollRequest, PollResult, RunSnapshot

log = logging.getLogger("flexlora.server")
POLL_EVERY_S = 0.5  # between polls of the database while nothing wakes the hub
MIN_PAUSE_S = 0.05  # between polls, however often the hub is woken
PAUSE_FACTOR = 4  # the pause after a poll is at least this many times as long as the poll took
MAX_PAUSE_S = 1.0  # of that pause
RETRY_AFTER_S = 2.0  # before the database is polled again after it failed
# between writes of the presence of all who wait; a third of the presence window where that is less
PRESENCE_EVERY_S = 5.0

Waiter = asyncio.Future[bool]


class WaitingRoom:
    """Parks requests until their run has changed or has work for them. Belongs to one event loop."""

    def __init__(self, store: Store, presence_window: float) -> None:
        self._poller = Poller(store, presence_window)
        self.key_cache = KeyCache()
        self._presence_every = min(PRESENCE_EVERY_S, presence_window / 3)
        self._snapshots: dict[str, RunSnapshot] = {}
        self._work_waiters: defaultdict[str, defaultdict[str, set[Waiter]]] = defaultdict(lambda: defaultdict(set))
        self._run_waiters: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._wake_event = asyncio.Event()
        self._closing, self._closed = False, asyncio.Event()
        self._declared: dict[tuple[str, str], str | None] = {}  # the instance that declared, by run and client
        self._arrivals: defaultdict[str, set[str]] = defaultdict(set)
        # whose presence was written since the last write of everyone's, or with it
        self._recently_seen: defaultdict[str, set[str]] = defaultdict(set)
        self._runs_with_newcomers: set[str] = set()
        self._presence_due = 0.0

    @property
    def waiting(self) -> int:
        """How many participants wait for work now."""
        return sum(map(len, self._work_waiters.values()))

    def wake(self) -> None:
        """Poll the database now; to be called in the loop's thread."""
        self._wake_event.set()

    def close(self) -> None:
        """Let `run` end; to be called in the loop's thread."""
        self._closing = True
        self._closed.set()
        self.wake()

    def remember_declared(self, run: str, client: str, instance: str | None) -> None:
        """Remember which instance has declared for this participant in the run: a declaration is never taken back.

        Where it is another one than before, the participant's waits end: each asks the database whether it is the newest.
        """
        if self._declared.get((run, client), instance) != instance:
            _resolve_all(self._work_waiters[run].get(client, set()))
        self._declared[run, client] = instance

    def is_declared(self, run: str, client: str, instance: str | None) -> bool:
        """Whether this instance is known to have declared last for the participant, in a run that is not known to be over.

        An instance of None is not compared.
        """
        snapshot = self._snapshots.get(run)
        if snapshot is None or snapshot.over or (run, client) not in self._declared:
            return False
        return instance is None or self._declared[run, client] in {None, instance}

    async def wait_for_work(
        self, run: str, client: str, seconds: float, gone: asyncio.Future[None], seen: int = -1
    ) -> bool:
        """Wait until this participant may have work, a key of it was revoked, another instance of its agent has declared, or
        the run is over: True.

        False after `seconds` without any of it, or when `gone` is done (its connection was closed). `seen` is the run's version
        that the caller has read already: a snapshot of that version or an older one ends no wait.
        """
        self._arrive(run, client)
        snapshot = self._snapshots.get(run)
        if snapshot is not None and snapshot.version > seen:
            if snapshot.over or client in snapshot.clients_with_work:
                return True
        elif snapshot is not None:
            snapshot.clients_with_work.discard(client)
        waiters = self._work_waiters[run]
        try:
            return await _wait(waiters[client], seconds, gone)
        finally:
            if not waiters[client]:
                del waiters[client]

    def _arrive(self, run: str, client: str) -> None:
        self._arrivals[run].add(client)
        if client not in self._recently_seen[run]:
            self._runs_with_newcomers.add(run)
            self.wake()

    async def wait_for_change(self, run: str, version: int, seconds: float) -> None:
        """Return when the run has changed since `version`, at the latest after `seconds`."""
        snapshot = self._snapshots.get(run)
        if snapshot is None or snapshot.version <= version:
            await _wait(self._run_waiters[run], seconds)

    async def run(self) -> None:
        """Poll until `close`. A database that fails is tried again; waiting requests stay parked meanwhile."""
        clock, thread = asyncio.get_running_loop().time, CapacityLimiter(1)  # a thread that busy requests do not take
        while not self._closing:
            await self._wait_until_woken()
            started = clock()
            try:
                self._publish(await to_thread.run_sync(self._poller.poll, self._next_request(), limiter=thread))
            except SQLAlchemyError as error:
                log.error("the database does not answer, trying again in %g s: %s", RETRY_AFTER_S, error)
                self._presence_due = 0.0  # what was to be written may not have been
                await self._sleep(RETRY_AFTER_S)
                continue
            except Exception:
                log.exception("the waiting room failed; it goes on")
            await self._sleep(min(max(MIN_PAUSE_S, PAUSE_FACTOR * (clock() - started)), MAX_PAUSE_S))

    async def _sleep(self, seconds: float) -> None:
        if not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()

    async def _wait_until_woken(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_EVERY_S):
                await self._wake_event.wait()
        self._wake_event.clear()

    def _next_request(self) -> PollRequest:
        """The next poll's input; presence is written of arrivals at once, of everyone who waits every few seconds."""
        seen, self._arrivals = self._arrivals, defaultdict(set)
        newcomers, self._runs_with_newcomers = frozenset(self._runs_with_newcomers), set()
        now = asyncio.get_running_loop().time()
        if now >= self._presence_due:
            self._presence_due = now + self._presence_every
            for run, waiters in self._work_waiters.items():
                seen[run].update(waiters)
            self._recently_seen.clear()
        for run, clients in seen.items():
            self._recently_seen[run] |= clients
        return PollRequest(
            {run: tuple(clients) for run, clients in seen.items() if clients}, newcomers, self.key_cache.ids()
        )

    def _publish(self, result: PollResult) -> None:
        """Take over what a poll read, and resolve the waiters that it concerns."""
        self._snapshots.update(result.snapshots)
        for name, snapshot in result.snapshots.items():
            _resolve_all(self._run_waiters[name])
            waiters = self._work_waiters[name]
            for client in list(waiters) if snapshot.over else snapshot.clients_with_work & waiters.keys():
                _resolve_all(waiters[client])
        for name, instances in result.instances.items():
            for client, instance in instances.items():
                self.remember_declared(name, client, instance)
        if result.valid_keys is not None:
            revoked = self.key_cache.keep_only(result.valid_keys)
            for waiters in self._work_waiters.values():
                for client in revoked & waiters.keys():
                    _resolve_all(waiters[client])


def _resolve_all(waiters: set[Waiter]) -> None:
    for future in waiters:
        _resolve(future, True)


def _resolve(future: Waiter, outcome: bool) -> None:
    if not future.done():
        future.set_result(outcome)


async def _wait(waiters: set[Waiter], seconds: float, gone: asyncio.Future[None] | None = None) -> bool:
    loop = asyncio.get_running_loop()
    future: Waiter = loop.create_future()
    waiters.add(future)
    timer = loop.call_later(seconds, _resolve, future, False)
    if gone is not None:
        gone.add_done_callback(lambda _: _resolve(future, False))
    try:
        return await future
    finally:
        timer.cancel()
        waiters.discard(future)
