"""Replaces the product's transactions, file calls, threads, secrets and heartbeats by those of the simulated machine."""

import errno
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio.to_thread
from sqlalchemy.exc import OperationalError

from flexlora_server.database.transactions import Store, Tx
from flexlora_server.lifecycle import serve_slice
from flexlora_server.worker import leases
from flexlora_server.worker.leases import Heartbeat
from tests.chaos.machine import Machine

SIMULATED = "simulated"  # in every error that is planned
NAMING = ("replace", "rename", "unlink", "remove", "link")


def simulated(error: BaseException | None) -> bool:
    """Whether this error, or what it came from, was planned."""
    return error is not None and (SIMULATED in str(error) or simulated(error.__cause__ or error.__context__))


class Defects(logging.Handler):
    """Errors that the product caught and logged, but should never have met."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        told = record.args if isinstance(record.args, tuple) else ()
        errors = [one for one in (record.exc_info or ()) + told if isinstance(one, Exception)]
        self.found += [f"{record.getMessage()} ({type(one).__name__})" for one in errors if not simulated(one)]


class Secrets:
    """Secrets that come out the same for the same history."""

    def __init__(self) -> None:
        self._count = 0

    def restart(self) -> None:
        """From the first one again."""
        self._count = 0

    def hexadecimal(self, size: int = 32) -> str:
        """As `secrets.token_hex`; scattered, so that the order of ids is not that of their making."""
        self._count += 1
        return f"{self._count * 0x9E3779B97F4A7C15F39CC0605CEDC834 % (1 << 8 * size):0{2 * size}x}"


class _Lock:
    """A lock of a process: nobody else is let in while it is held."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._held: list[Any] = []

    def __enter__(self) -> None:
        self._held.append(self._machine.holding())
        self._held[-1].__enter__()

    def __exit__(self, *error: object) -> None:
        self._held.pop().__exit__(None, None, None)


@contextmanager
def installed(
    machine: Machine, ids: Secrets, clock: Callable[[], float], committed: Callable[[], None]
) -> Iterator[Defects]:
    """For the block, the product runs on the simulated machine; `committed` is called after every transaction."""
    defects, log = Defects(), logging.getLogger("flexlora")
    with ExitStack() as stack:
        log.addHandler(defects)
        stack.callback(log.removeHandler, defects)
        stack.enter_context(patch.object(log, "propagate", False))
        for name in NAMING:
            stack.enter_context(patch.object(os, name, _naming(machine, name, getattr(os, name))))
        for name in ("fsync", "fdatasync"):
            stack.enter_context(patch.object(os, name, _syncing(machine)))
        for where, name, value in (
            (Store, "transaction", _writing(machine, Store.transaction, committed)),
            (Store, "reading", _reading(machine, Store.reading)),
            (anyio.to_thread, "run_sync", _here),
            (time, "monotonic", clock),
            (secrets, "token_hex", ids.hexadecimal),
            (secrets, "token_urlsafe", ids.hexadecimal),
            (serve_slice, "_cut_lock", _Lock(machine)),
            (Heartbeat, "running", _beating),
            (Heartbeat, "check", _check(machine)),
        ):
            stack.enter_context(patch.object(where, name, value))
        yield defects


async def _here(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
    return work(*args)


def _inside(machine: Machine, path: Any) -> bool:
    return machine.watching and bool(machine.frames) and isinstance(path, str | Path) and machine.disk.holds(Path(path))


def _naming(machine: Machine, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *args: Any, **options: Any) -> Any:
        if not _inside(machine, path):
            return real(path, *args, **options)
        if machine.dying():
            return None
        machine.point(f"before {name}")
        if machine.breaks("storage"):
            raise OSError(errno.ENOSPC, f"No space left on the {SIMULATED} device")
        done = real(path, *args, **options)
        machine.point(f"after {name}")
        return done

    return call


def _syncing(machine: Machine) -> Callable[[int], None]:
    def call(descriptor: int) -> None:
        if machine.dying():
            return
        machine.point("before sync")
        if machine.breaks("storage"):
            raise OSError(errno.EIO, f"The {SIMULATED} device failed")
        machine.disk.fsync(descriptor)
        machine.point("after sync")

    return call


def _unreachable() -> OperationalError:
    return OperationalError(f"the {SIMULATED} database", None, Exception("server closed the connection unexpectedly"))


def _writing(machine: Machine, real: Callable[..., Any], committed: Callable[[], None]) -> Callable[..., Any]:
    @contextmanager
    def transaction(store: Store) -> Iterator[Tx]:
        machine.point("before transaction")
        if machine.breaks("database"):
            raise _unreachable()
        with machine.holding(), real(store) as tx:
            yield tx
            tx.session.flush()
            machine.point("before commit")
        if machine.frames:
            committed()
        machine.point("after commit")
        if machine.breaks("database"):  # the answer to COMMIT was lost
            raise _unreachable()

    return transaction


def _reading(machine: Machine, real: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def reading(store: Store) -> Iterator[Tx]:
        machine.point("before reading")
        with real(store) as tx:
            yield tx
        machine.point("after reading")

    return reading


@contextmanager
def _beating(heartbeat: Heartbeat) -> Iterator[Heartbeat]:
    yield heartbeat


def _check(machine: Machine) -> Callable[[Heartbeat], None]:
    def check(heartbeat: Any) -> None:
        machine.point("heartbeat")
        if machine.breaks("storage"):
            raise RuntimeError(f"the {SIMULATED} engine cannot go on")
        if machine.beats():
            with heartbeat._store.transaction() as tx:
                leases.renew(tx, heartbeat._lease, heartbeat._seconds)

    return check
