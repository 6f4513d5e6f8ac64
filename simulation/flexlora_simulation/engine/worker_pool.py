"""Runs jobs on workers that may die: what a dead one was at is run again, by whichever worker is free.

`concurrent.futures` gives up every job when one process dies, and does not tell whose it was. Here a thread waits for each
worker, so a death costs one job, and the job is known. Trainings are deterministic: the second time they give the same bytes.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainedUpdate, TrainingJob
from flexlora_simulation.errors import SimulationError

log = logging.getLogger("flexlora.simulation")
ATTEMPTS = 3  # of one job on workers that die, and of a worker to start
PATIENCE_S = 10.0  # for a thread at the end, which may wait for a cluster that is gone
Job = TrainingJob | EvaluationJob
Result = TrainedUpdate | Evaluated


class WorkerDied(Exception):
    """A worker ended before what it was asked for was done; the message says how, as a part of a sentence."""


class Worker(Protocol):
    """Runs one job at a time, in a process somewhere. Its thread calls `start` and `run`, another one `stop`."""

    def start(self) -> None:
        """Make it ready for jobs, in the place of one that died.

        Raises:
            WorkerDied: it died meanwhile, or is stopped.
            SimulationError: starting it again would not help.
        """

    def run(self, job: Job) -> Result:
        """The job's result. Raises: WorkerDied, or what the job raised."""

    def stop(self) -> None:
        """End it at once, whatever it is doing, for good."""


@dataclass
class _Order:
    """A job that somebody waits for."""

    job: Job
    future: "Future[Any]" = field(default_factory=Future)
    attempts: int = 0


class WorkerPool:
    """An `Executor`. `advice`: a sentence for whoever runs the experiment, of what to do where workers die again and again."""

    def __init__(self, workers: Sequence[Worker], advice: str) -> None:
        self._workers, self._advice = workers, advice
        self._waiting = deque[_Order]()
        self._changed = threading.Condition()
        self._end: SimulationError | None = None  # why no more jobs are run
        # daemons: a program that forgets `close` ends all the same, and its processes with it
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        for thread in self._threads:
            thread.start()

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        """Begin a training."""
        return self._submit(job)

    def evaluate(self, job: EvaluationJob) -> "Future[Evaluated]":
        """Begin an evaluation."""
        return self._submit(job)

    def close(self) -> None:
        """Stop at once: jobs that are not done are dropped."""
        self._finish(SimulationError("the simulation was stopped"))
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _submit(self, job: Job) -> "Future[Any]":
        order = _Order(job)
        with self._changed:
            if self._end is not None:
                order.future.set_exception(self._end)
            else:
                self._waiting.append(order)
                self._changed.notify()
        return order.future

    def _serve(self, worker: Worker) -> None:
        """The life of a worker's thread."""
        deaths = 0
        while self._end is None:
            try:
                worker.start()
            except WorkerDied as died:
                deaths += 1
                if deaths == ATTEMPTS:
                    self._finish(SimulationError(f"a process for participants {died} as it began. {self._advice}"))
            except SimulationError as error:
                self._finish(error)
            except Exception as error:
                log.debug("a process for participants cannot be started", exc_info=error)
                self._finish(SimulationError(f"a process for participants cannot be started: {error}"))
            else:
                deaths = 0
                self._run_jobs(worker)

    def _run_jobs(self, worker: Worker) -> None:
        """One after the other, until the worker dies or no more are run."""
        while (order := self._next()) is not None:
            try:
                result = worker.run(order.job)
            except WorkerDied as died:
                self._run_again(order, died)
                return
            except Exception as error:  # of the job
                order.future.set_exception(error)
            else:
                order.future.set_result(result)

    def _next(self) -> _Order | None:
        """Wait for a job; None where no more are run."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._end is not None)
                if self._end is not None:
                    return None
                order = self._waiting.popleft()
                if order.attempts or order.future.set_running_or_notify_cancel():
                    order.attempts += 1
                    return order

    def _run_again(self, order: _Order, died: WorkerDied) -> None:
        with self._changed:
            if self._end is not None:
                order.future.set_exception(self._end)
            elif order.attempts == ATTEMPTS:
                told = f"{_describe(order.job)}: its process {died}, {ATTEMPTS} times. {self._advice}"
                order.future.set_exception(SimulationError(told))
            else:
                log.warning("%s: its process %s; it is run again", _describe(order.job), died)
                self._waiting.appendleft(order)
                self._changed.notify()

    def _finish(self, reason: SimulationError) -> None:
        """Run no more jobs; those that wait fail of `reason`."""
        with self._changed:
            self._end = self._end or reason
            for order in self._waiting:
                if order.attempts or order.future.set_running_or_notify_cancel():
                    order.future.set_exception(self._end)
            self._waiting.clear()
            self._changed.notify_all()


def _describe(job: Job) -> str:
    if isinstance(job, TrainingJob):
        return f"training of {job.participant} in round {job.task.round}"
    return f"evaluation of round {job.round} at rank {job.rank} on {job.on}"
