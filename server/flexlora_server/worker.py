"""Aggregates rounds: lease one, work with no transaction open, publish. Runs in its own process, outside the event loop."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from flexlora_server import engine, leases, progress
from flexlora_server.adapters.uploads import Accepted, weighted
from flexlora_server.blobs import Blob, BlobStore, Damaged
from flexlora_server.errors import LeaseLost
from flexlora_server.figures import energy_over_modules, summary
from flexlora_server.leases import Heartbeat, Lease
from flexlora_server.poison import culprits
from flexlora_server.pool import pool_of
from flexlora_server.records import adapters, inputs, rounds, runs
from flexlora_server.serving import cut_blob
from flexlora_server.settings import Settings
from flexlora_server.store import Store, Tx
from flexlora_server.tables import Round, RoundModules
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import AggregationMetrics, ModuleMetrics
from flexlora_shared.messages.uploads import UploadCreate

log = logging.getLogger("flexlora.worker")
MOST = 4000  # characters of a reason


class Stopping(Exception):
    """The worker was asked to end; the round is given back."""


@dataclass(frozen=True)
class Given:
    """One frozen input: its upload, the SHA-256 of its bytes, and for a late one that of the adapter it was trained from."""

    upload: str
    client: str
    sha256: str
    told: UploadCreate
    staleness: int
    base: str | None


@dataclass(frozen=True)
class Job:
    """The frozen inputs of one aggregation."""

    lease: Lease
    spec: RunSpec
    previous: str | None  # SHA-256 of the stored adapter of the round before; None in round 0
    before: str | None  # of the round before that one
    inputs: tuple[Given, ...]  # in their fixed order
    past_norms: tuple[float, ...]  # median change norms of the past rounds
    ranks: tuple[tuple[int, dict[str, int]], ...]  # the slices that participants will ask for


@dataclass(frozen=True)
class Result:
    """What an aggregation made: the global update, its slices and its figures."""

    adapter: Blob
    slices: tuple[tuple[int, dict[str, int], Blob], ...]
    modules: tuple[ModuleMetrics, ...]
    updates: AggregationMetrics | None
    seconds: float


class Worker:
    """Works off the rounds that wait for aggregation. `stop` is asked between modules whether to end."""

    def __init__(
        self, store: Store, blobs: BlobStore, settings: Settings, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._store, self._blobs, self._settings, self._stop = store, blobs, settings, stop
        self._pool = pool_of(settings)
        self._name = f"{socket.gethostname()[:100]}:{os.getpid()}"
        self._owed: tuple[Lease, str] | None = None  # to be given back, once the database answers again

    def step(self) -> bool:
        """Work on one round, where one waits; whether there was one.

        Raises:
            SQLAlchemyError, OSError: the database or the storage failed; no attempt was counted.
        """
        self._give_back()
        with self._store.transaction() as tx:
            lease = leases.take(tx, self._settings.lease_seconds, self._name)
        if lease is None:
            return False
        log.info("run %s round %d: aggregating", lease.run, lease.number)
        try:
            self._aggregate(lease)
        except LeaseLost as lost:
            log.warning("%s", lost)
        except Stopping:
            self._owed = lease, ""
            self._give_back()
        except (
            SQLAlchemyError,
            OSError,
        ) as error:  # the place fails, not the round; also where the result is published
            self._owed = lease, f"the storage failed: {error}"
            with contextlib.suppress(SQLAlchemyError):  # else before the next step
                self._give_back()
            raise
        return True

    def _give_back(self) -> None:
        if self._owed is None:
            return
        lease, why = self._owed
        with contextlib.suppress(LeaseLost), self._store.transaction() as tx:
            leases.release(tx, lease, why or None)
        self._owed = None

    def _aggregate(self, lease: Lease) -> None:
        with self._store.reading() as tx:
            job = _job(tx, lease)
        with Heartbeat(self._store, lease, self._settings.lease_seconds).beating() as heartbeat:
            try:
                result = self._work(job, lambda: self._alive(heartbeat))
            except (FileNotFoundError, Damaged) as error:  # an input is gone: no later try finds it
                self._failed(job, heartbeat, f"a file that the round needs is missing or damaged: {error}")
                return
            except (LeaseLost, Stopping, SQLAlchemyError, OSError):
                raise
            except Exception as error:
                log.exception("run %s round %d: aggregation failed", lease.run, lease.number)
                self._failed(job, heartbeat, f"{type(error).__name__}: {error}")
                return
        made = [result.adapter.sha256, *(blob.sha256 for _, _, blob in result.slices)]
        with self._blobs.publishing(made), self._store.transaction() as tx:
            _publish(tx, lease, result)
        log.info("run %s round %d: published in %.1f s", lease.run, lease.number, result.seconds)

    def _alive(self, heartbeat: Heartbeat) -> None:
        heartbeat.check()
        if self._stop():
            raise Stopping

    def _work(self, job: Job, alive: Callable[[], None]) -> Result:
        started = time.perf_counter()
        with self._blobs.writing() as file, self._blobs.pinned() as pin:
            modules, updates = tuple[ModuleMetrics, ...](), None
            if job.previous is None:
                engine.write_initial(job.spec, file)
            else:
                modules, updates = engine.write_aggregate(self._given(job, job.previous, pin), file, alive, self._pool)
            adapter = self._blobs.finish(file)
        cut = []
        for rank, pattern in job.ranks:
            alive()
            cut.append((rank, pattern, cut_blob(self._blobs, adapter.sha256, job.spec, rank, pattern)))
        return Result(adapter, tuple(cut), modules, updates, time.perf_counter() - started)

    def _given(self, job: Job, previous: str, pin: Callable[[str], Path]) -> engine.Work:
        return engine.Work(
            spec=job.spec,
            inputs=weighted([_accepted(given, pin) for given in job.inputs]),
            previous=pin(previous),
            before=None if job.before is None else pin(job.before),
            past_norms=job.past_norms,
            threads=self._settings.aggregation_threads,
            device=self._settings.aggregation_device,
        )

    def _failed(self, job: Job, heartbeat: Heartbeat, why: str) -> None:
        """Count a failed attempt, with the uploads that break the aggregation named where they can be told."""
        try:
            named = "" if job.previous is None else self._culprits(job, job.previous, lambda: self._alive(heartbeat))
        except OSError as error:  # a failure that cannot be explained is a failure still
            named = f" Which input breaks it could not be told: {error}."
        with self._store.transaction() as tx:
            run = runs.lock(tx, job.lease.run)
            leases.renew(tx, job.lease, 0)  # the token is compared: a worker that lost its lease reports nothing
            progress.failed(tx, run, _round(tx, job.lease), f"{why}{named}"[:MOST])

    def _culprits(self, job: Job, previous: str, alive: Callable[[], None]) -> str:
        if named := self._unsound(job, previous, alive):
            return named
        with self._blobs.pinned() as pin:
            found = culprits(self._given(job, previous, pin), [given.sha256 for given in job.inputs], alive)
        return "".join(f" Upload {job.inputs[one.index].upload}: {one.why}." for one in found)

    def _unsound(self, job: Job, previous: str, alive: Callable[[], None]) -> str:
        """What the storage itself has lost or damaged; damaged local copies are fetched again on the way."""
        missing = self._blobs.missing({given.sha256 for given in job.inputs})
        if missing:
            gone = [given.upload for given in job.inputs if given.sha256 in missing]
            return "".join(f" Upload {upload}: its bytes are not in the storage." for upload in gone)
        if self._damaged(previous):
            return f" The stored adapter of round {job.lease.number - 1} is damaged: restore the blob {previous}."
        for older in {job.before, *(given.base for given in job.inputs)} - {None, previous}:
            if older is not None and self._damaged(older):
                return f" An older stored adapter is damaged: restore the blob {older}."
        named = ""
        for given in job.inputs:
            alive()
            if self._damaged(given.sha256):
                named += f" Upload {given.upload}: its file is damaged; restore the blob {given.sha256} or exclude the upload."
        return named

    def _damaged(self, sha256: str) -> bool:
        try:
            self._blobs.whole(sha256)
        except Damaged:
            return True
        return False


def _accepted(given: Given, pin: Callable[[str], Path]) -> Accepted:
    base = None if given.base is None else pin(given.base)
    return Accepted(pin(given.sha256), given.told, given.client, given.staleness, base)


def _job(tx: Tx, lease: Lease) -> Job:
    spec = runs.spec_of(runs.get(tx, lease.run))
    return Job(
        lease=lease,
        spec=spec,
        previous=adapters.published(tx, lease.run, lease.number - 1).sha256 if lease.number > 0 else None,
        before=adapters.published(tx, lease.run, lease.number - 2).sha256 if lease.number > 1 else None,
        inputs=tuple(_input(tx, lease, one) for one in inputs.counting(tx, _round(tx, lease))),
        past_norms=rounds.change_norms(tx, lease.run, lease.number),
        ranks=adapters.wanted_slices(tx, lease.run, spec.largest_rank),
    )


def _input(tx: Tx, lease: Lease, one: inputs.Frozen) -> Given:
    base = adapters.published(tx, lease.run, one.round - 1).sha256 if one.staleness else None
    told = UploadCreate.model_validate(one.upload.announced)
    return Given(one.upload.id, one.upload.client_id, one.upload.sha256, told, one.staleness, base)


def _round(tx: Tx, lease: Lease) -> Round:
    return tx.session.get_one(Round, lease.round_id, populate_existing=True)


def _publish(tx: Tx, lease: Lease, result: Result) -> None:
    run = runs.lock(tx, lease.run)
    leases.renew(tx, lease, 0)  # the fencing token, compared in the transaction that publishes
    round_ = _round(tx, lease)
    adapters.publish(tx, lease.run, lease.number, result.adapter)
    for rank, pattern, blob in result.slices:
        adapters.keep_cut(tx, lease.run, lease.number, rank, pattern, blob)
    energy = [kept.model_dump(mode="json") for kept in energy_over_modules(result.modules)]
    modules = [module.model_dump(mode="json") for module in result.modules]
    updates = None if result.updates is None else result.updates.model_dump(mode="json")
    told = None if result.updates is None else summary(result.modules, result.updates).model_dump(mode="json")
    tx.session.add(RoundModules(round_id=round_.id, energy_kept=energy, modules=modules, updates=updates, summary=told))
    round_.aggregation_seconds = result.seconds
    progress.published(tx, run, round_)
