"""A pool whose workers die: no job is lost, and none is tried for ever. The workers here are threads that do as they are told."""

import threading
from collections import deque
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import AdapterRef, Task
from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, TrainingJob
from flexlora_simulation.engine.worker_pool import ATTEMPTS, Job, Worker, WorkerDied, WorkerPool
from flexlora_simulation.errors import SimulationError
from tests.support.kit import spec

SPEC = RunSpec.model_validate(spec())
TASK = Task(
    run="run",
    round=1,
    attempt=1,
    rank=8,
    rank_pattern={},
    deadline="2020-01-01T00:00:00Z",
    adapter=AdapterRef(href="/", config_href="/", sha256="0" * 64, size=1),
    spec=SPEC,
)


def evaluation(on: str) -> EvaluationJob:
    return EvaluationJob(SPEC, 3, 8, Path("slice"), on)


def training(participant: str) -> TrainingJob:
    return TrainingJob(participant, TASK, Path("slice"))


class Scripted:
    """Gives the job's name as a metric, or does what the next entry of its script says instead; stands still on "stand"."""

    def __init__(self, run: tuple[Exception | str, ...] = (), start: tuple[Exception, ...] = ()) -> None:
        self.starts, self.at_work, self.stopped = 0, threading.Event(), threading.Event()
        self._run, self._start = deque(run), deque(start)

    def start(self) -> None:
        self.starts += 1
        if self._start:
            raise self._start.popleft()

    def run(self, job: Job) -> Evaluated:
        entry = self._run.popleft() if self._run else None
        if isinstance(entry, Exception):
            raise entry
        if entry == "stand":
            self.at_work.set()
            self.stopped.wait()
            raise WorkerDied("was stopped")
        return Evaluated({name_of(job): 1.0}, 1, 0.0)

    def stop(self) -> None:
        self.stopped.set()


def name_of(job: Job) -> str:
    return job.participant if isinstance(job, TrainingJob) else job.on


def pool_of(*workers: Worker) -> WorkerPool:
    return WorkerPool(workers, "Buy more memory.")


def died() -> WorkerDied:
    return WorkerDied("was killed by SIGKILL")


def test_jobs_go_to_any_worker_and_come_back_as_their_own() -> None:
    pool = pool_of(Scripted(), Scripted())
    futures = {on: pool.evaluate(evaluation(on)) for on in "abcdefgh"}
    assert {on: list(future.result().metrics) for on, future in futures.items()} == {on: [on] for on in "abcdefgh"}
    pool.close()


def test_a_job_whose_worker_died_is_run_again_before_those_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    worker = Scripted((died(), died()))
    pool = pool_of(worker)
    ended: list[str] = []
    futures = {on: pool.evaluate(evaluation(on)) for on in "ab"}
    for on, future in futures.items():
        future.add_done_callback(lambda _, on=on: ended.append(on))  # type: ignore[misc]
        assert list(future.result().metrics) == [on]
    assert (ended, worker.starts) == (["a", "b"], 3)
    assert "evaluation of round 3 at rank 8 on a: its process was killed by SIGKILL; it is run again" in caplog.text
    pool.close()


def test_another_worker_takes_the_job_of_one_that_does_not_come_back() -> None:
    """As where the machine that it was on is gone, and no other has room for one more."""
    gone, other = Scripted(("stand",)), Scripted(("stand",))
    pool = pool_of(gone, other)
    futures = [pool.evaluate(evaluation(on)) for on in "ab"]
    assert gone.at_work.wait(60)
    assert other.at_work.wait(60)
    comes_back = threading.Event()
    gone.start = comes_back.wait  # type: ignore[method-assign, assignment]
    gone.stopped.set()
    other.stopped.set()
    assert [list(future.result(60).metrics) for future in futures] == [["a"], ["b"]]
    comes_back.set()
    pool.close()


def test_a_job_that_costs_its_worker_each_time_ends_with_a_sentence_and_the_others_are_run() -> None:
    pool = pool_of(Scripted(tuple(died() for _ in range(ATTEMPTS))))
    futures = [pool.train(training(name)) for name in ("Ada", "Bob")]
    with pytest.raises(SimulationError) as failed:
        futures[0].result(60)
    sentence = "training of Ada in round 1: its process was killed by SIGKILL, 3 times. Buy more memory."
    assert str(failed.value) == sentence
    assert futures[1].result(60)
    pool.close()


def test_what_a_job_raises_is_its_result_and_is_not_tried_again() -> None:
    worker = Scripted((ValueError("no data"),))
    pool = pool_of(worker)
    with pytest.raises(ValueError, match="no data"):
        pool.train(training("Ada")).result(60)
    assert pool.train(training("Bob")).result(60)
    assert worker.starts == 1
    pool.close()


def test_a_worker_may_die_as_it_starts_but_not_for_ever() -> None:
    pool = pool_of(Scripted(start=(died(), died())))
    assert pool.train(training("Ada")).result(60)
    pool.close()
    pool = pool_of(Scripted(start=tuple(died() for _ in range(ATTEMPTS))))
    with pytest.raises(SimulationError, match=r"participants was killed by SIGKILL as it began\. Buy more memory"):
        pool.train(training("Ada")).result(60)
    pool.close()


@pytest.mark.parametrize("refusal", [SimulationError("node b lacks the data"), OSError("node b lacks the data")])
def test_a_worker_that_cannot_be_started_ends_all_jobs(refusal: Exception) -> None:
    standing = Scripted(("stand",))
    pool = pool_of(standing)
    first = pool.train(training("Ada"))
    assert standing.at_work.wait(60)
    refusing = pool_of(Scripted(start=(refusal,)))
    for future in [refusing.train(training("Bob")) for _ in range(2)]:
        with pytest.raises(SimulationError, match="node b lacks the data"):
            future.result(60)
    refusing.close()
    pool.close()
    with pytest.raises(SimulationError, match="was stopped"):
        first.result(60)


def test_closing_drops_what_is_not_done_at_once() -> None:
    worker = Scripted(("stand",))
    pool = pool_of(worker)
    running, waiting, cancelled = (pool.train(training(name)) for name in ("Ada", "Bob", "Cem"))
    assert worker.at_work.wait(60)
    assert cancelled.cancel()
    pool.close()
    for future in (running, waiting, pool.train(training("Dan"))):
        with pytest.raises(SimulationError, match="was stopped"):
            future.result(60)
    with pytest.raises(CancelledError):
        cancelled.result(60)
    assert worker.stopped.is_set()


def test_a_cancelled_job_is_not_run() -> None:
    worker = Scripted(("stand",))
    pool = pool_of(worker)
    first, cancelled, last = (pool.train(training(name)) for name in ("Ada", "Bob", "Cem"))
    assert worker.at_work.wait(60)
    assert cancelled.cancel()
    worker.stopped.set()  # it dies, and the first job is run again
    assert first.result(60)
    assert last.result(60)
    pool.close()
