"""Aggregates rounds: lease one, work with no transaction open, publish. Runs in its own process, outside the event loop."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from flexlora_server import engine, leases, progress
from flexlora_server.adapters.uploads import weighted
from flexlora_server.blobs import Blob, BlobStore
from flexlora_server.errors import LeaseLost
from flexlora_server.figures import energy_over_modules, summary
from flexlora_server.leases import Heartbeat, Lease
from flexlora_server.records import adapters, rounds, runs, uploads
from flexlora_server.serving import cut_blob
from flexlora_server.settings import Settings
from flexlora_server.store import Store, Tx
from flexlora_server.tables import Round, RoundModules
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import AggregationMetrics, ModuleMetrics
from flexlora_shared.messages.uploads import UploadCreate

log = logging.getLogger("flexlora.worker")


@dataclass(frozen=True)
class Job:
    """The frozen inputs of one aggregation."""

    lease: Lease
    spec: RunSpec
    previous: str | None  # SHA-256 of the stored adapter of the round before; None in round 0
    before: str | None  # of the round before that one
    inputs: tuple[
        tuple[str, UploadCreate, str], ...
    ]  # SHA-256, announcement and client of the accepted uploads, in fixed order
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
    """Works off the rounds that wait for aggregation."""

    def __init__(self, store: Store, blobs: BlobStore, settings: Settings) -> None:
        self._store, self._blobs, self._settings = store, blobs, settings

    def step(self) -> bool:
        """Work on one round, where one waits; whether there was one.

        Raises:
            SQLAlchemyError, OSError: the database or the storage failed; the round stays as it is.
        """
        with self._store.transaction() as tx:
            lease = leases.take(tx, self._settings.lease_seconds)
        if lease is None:
            return False
        log.info("run %s round %d: aggregating", lease.run, lease.number)
        try:
            self._aggregate(lease)
        except LeaseLost as lost:
            log.warning("%s", lost)
        except FileNotFoundError as error:  # an input is gone: no later try finds it
            self._fail(lease, f"a file that the round needs is missing: {error}")
        except (SQLAlchemyError, OSError):
            raise  # the place fails, not the round: it is taken up again when its lease has run out
        except Exception as error:
            log.exception("run %s round %d: aggregation failed", lease.run, lease.number)
            self._fail(lease, f"{type(error).__name__}: {error}")
        return True

    def _aggregate(self, lease: Lease) -> None:
        with self._store.reading() as tx:
            job = _job(tx, lease)
        with Heartbeat(self._store, lease, self._settings.lease_seconds).beating() as heartbeat:
            result = self._work(job, heartbeat.check)
        with self._store.transaction() as tx:
            _publish(tx, lease, result)
        log.info("run %s round %d: published in %.1f s", lease.run, lease.number, result.seconds)

    def _work(self, job: Job, alive: Callable[[], None]) -> Result:
        started = time.perf_counter()
        with self._blobs.writing() as file:
            modules, updates = tuple[ModuleMetrics, ...](), None
            if job.previous is None:
                engine.write_initial(job.spec, file)
            else:
                modules, updates = engine.write_aggregate(self._given(job, job.previous), file, alive)
            adapter = self._blobs.finish(file)
        cut = []
        for rank, pattern in job.ranks:
            alive()
            cut.append((rank, pattern, cut_blob(self._blobs, adapter.sha256, job.spec, rank, pattern)))
        return Result(adapter, tuple(cut), modules, updates, time.perf_counter() - started)

    def _given(self, job: Job, previous: str) -> engine.Work:
        return engine.Work(
            spec=job.spec,
            inputs=weighted([(self._blobs.path(sha256), told, client) for sha256, told, client in job.inputs]),
            previous=self._blobs.path(previous),
            before=None if job.before is None else self._blobs.path(job.before),
            past_norms=job.past_norms,
            threads=self._settings.aggregation_threads,
            device=self._settings.aggregation_device,
        )

    def _fail(self, lease: Lease, why: str) -> None:
        try:
            with self._store.transaction() as tx:
                run = runs.lock(tx, lease.run)
                leases.renew(tx, lease, 0)  # the token is compared: a worker that lost its lease reports nothing
                progress.failed(tx, run, _round(tx, lease), why)
        except LeaseLost as lost:
            log.warning("%s", lost)


def _job(tx: Tx, lease: Lease) -> Job:
    spec = runs.spec_of(runs.get(tx, lease.run))
    accepted = uploads.inputs(tx, _round(tx, lease))
    return Job(
        lease=lease,
        spec=spec,
        previous=adapters.published(tx, lease.run, lease.number - 1).sha256 if lease.number > 0 else None,
        before=adapters.published(tx, lease.run, lease.number - 2).sha256 if lease.number > 1 else None,
        inputs=tuple((row.sha256, UploadCreate.model_validate(row.announced), row.client_id) for row in accepted),
        past_norms=rounds.change_norms(tx, lease.run, lease.number),
        ranks=adapters.wanted_slices(tx, lease.run, spec.largest_rank),
    )


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
