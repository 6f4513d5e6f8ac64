"""Aggregates rounds: takes a lease, works with no transaction open, publishes. Runs in its own process."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from flexlora_server.database.queries import runs
from flexlora_server.database.schema import Round
from flexlora_server.database.transactions import Store
from flexlora_server.errors import LeaseLost, PluginUnusable, Stopping
from flexlora_server.lifecycle import transitions
from flexlora_server.lifecycle.serve_slice import cut_blob
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, DamagedBlob
from flexlora_server.worker import aggregate_round, leases
from flexlora_server.worker.diagnosis import explain_failure
from flexlora_server.worker.executors.base import create_executor
from flexlora_server.worker.job import Job, read_job
from flexlora_server.worker.leases import Heartbeat, Lease
from flexlora_server.worker.publish import AggregationResult, publish
from flexlora_shared.messages.status import ModuleMetrics

log = logging.getLogger("flexlora.worker")
# The database, the storage or the installation fails, not the round: it is given back, and no attempt counts.
ENVIRONMENT_ERRORS = (SQLAlchemyError, OSError, PluginUnusable)
MAX_REASON_CHARS = 4000


class Worker:
    """Aggregates the rounds that wait for it. `stop` is called between modules: True ends the work."""

    def __init__(
        self, store: Store, blobs: BlobStore, settings: Settings, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._store, self._blobs, self._settings, self._stop = store, blobs, settings, stop
        self._executor = create_executor(settings)
        self._name = f"{socket.gethostname()[:100]}:{os.getpid()}"
        self._lease_to_release: tuple[Lease, str] | None = None  # with a reason; kept while the database fails

    def step(self) -> bool:
        """Work on one round, where one waits; whether there was one.

        Raises:
            ENVIRONMENT_ERRORS: the database, the storage or the installation failed; no attempt is counted, unless that lasts
                longer than the lease and another worker takes the round first.
        """
        self._release_lease()
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
            self._lease_to_release = lease, ""
            self._release_lease()
        except ENVIRONMENT_ERRORS as error:  # also when the result is published
            what = "a plug-in is missing" if isinstance(error, PluginUnusable) else "the storage failed"
            self._lease_to_release = lease, f"{what}: {error}"
            with contextlib.suppress(SQLAlchemyError):  # else before the next step
                self._release_lease()
            raise
        return True

    def _release_lease(self) -> None:
        if self._lease_to_release is None:
            return
        lease, reason = self._lease_to_release
        with contextlib.suppress(LeaseLost), self._store.transaction() as tx:
            leases.release(tx, lease, reason or None)
        self._lease_to_release = None

    def _aggregate(self, lease: Lease) -> None:
        with self._store.reading() as tx:
            job = read_job(tx, lease, self._settings)
        with Heartbeat(self._store, lease, self._settings.lease_seconds).running() as heartbeat:
            try:
                result = self._work(job, lambda: self._check_alive(heartbeat))
            except (FileNotFoundError, DamagedBlob) as error:  # an input is gone: no later try finds it
                self._failed(job, heartbeat, f"a file that the round needs is missing or damaged: {error}")
                return
            except (LeaseLost, Stopping, *ENVIRONMENT_ERRORS):
                raise
            except Exception as error:
                log.exception("run %s round %d: aggregation failed", lease.run, lease.number)
                self._failed(job, heartbeat, f"{type(error).__name__}: {error}")
                return
            # while the lease is still renewed: remote files may have to be fetched again
            with self._blobs.protect_from_collection(result.digests), self._store.transaction() as tx:
                publish(tx, lease, result)
        log.info("run %s round %d: published in %.1f s", lease.run, lease.number, result.seconds)

    def _check_alive(self, heartbeat: Heartbeat) -> None:
        heartbeat.check()
        if self._stop():
            raise Stopping

    def _work(self, job: Job, check_alive: Callable[[], None]) -> AggregationResult:
        started = time.perf_counter()
        with self._blobs.writing() as file, self._blobs.pinned() as pin:
            modules, updates = tuple[ModuleMetrics, ...](), None
            if job.start is not None:
                aggregate_round.write_start(job.spec, pin(job.start), file, check_alive)
            elif job.work is None:
                aggregate_round.write_initial(job.spec, file)
            else:
                work = job.work.with_paths(lambda path: pin(path.name))
                modules, updates = aggregate_round.write_aggregate(work, file, check_alive, self._executor)
            adapter = self._blobs.finish(file)
        slices = []
        for rank, pattern in job.slices:
            check_alive()
            slices.append((rank, pattern, cut_blob(self._blobs, adapter.sha256, job.spec, rank, pattern)))
        return AggregationResult(adapter, tuple(slices), modules, updates, time.perf_counter() - started)

    def _failed(self, job: Job, heartbeat: Heartbeat, reason: str) -> None:
        """Count a failed attempt; its reason names the uploads that break the aggregation where they can be found."""
        try:
            explanation = explain_failure(job, self._blobs, self._settings, lambda: self._check_alive(heartbeat))
        except (LeaseLost, Stopping, SQLAlchemyError):
            raise
        except Exception as error:  # a failure that cannot be explained is a failure still
            log.exception(
                "run %s round %d: looking for the input that breaks it failed", job.lease.run, job.lease.number
            )
            explanation = f" Which input breaks it could not be told: {error}."
        with self._store.transaction() as tx:
            run = runs.lock(tx, job.lease.run)
            leases.renew(tx, job.lease, 0)  # the token is compared: a worker that lost its lease reports nothing
            round_ = tx.session.get_one(Round, job.lease.round_id, populate_existing=True)
            transitions.record_failure(tx, run, round_, f"{reason}{explanation}"[:MAX_REASON_CHARS])
