"""The worker: leases that are taken over, workers that were fenced off, failures that end a run."""

import errno

import pytest

from flexlora_server import state_machine as machine
from flexlora_server.database.queries import inputs, rounds, runs
from flexlora_server.database.schema import Round
from flexlora_server.errors import Conflict, LeaseLost
from flexlora_server.lifecycle import transitions
from flexlora_server.worker import aggregate_round, leases, worker
from flexlora_server.worker.job import read_job
from flexlora_server.worker.leases import Heartbeat
from flexlora_server.worker.publish import publish
from flexlora_server.worker.worker import Worker
from tests.support.kit import Served, encode, spec, tensors


def ready(coordinator: Served) -> None:
    """A run whose first round waits for a worker."""
    participant, task, data = coordinator.working(rounds=1)
    participant.upload(task, data)


def state(coordinator: Served) -> str:
    return str(coordinator.round("run", 1)["summary"]["state"])


def test_a_lease_keeps_others_away_until_it_ends(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        lease = leases.take(tx, 60, "a worker")
    assert lease is not None
    assert (lease.run, lease.number, lease.token) == ("run", 1, 1)
    coordinator.clock.advance(59.9)
    assert coordinator.work() == 0
    coordinator.clock.advance(0.1)
    assert coordinator.work() == 1
    assert state(coordinator) == "PUBLISHED"
    with pytest.raises(LeaseLost), coordinator.store.transaction() as tx:
        leases.renew(tx, lease, 60)


def test_a_renewed_lease_is_kept(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        lease = leases.take(tx, 60, "a worker")
    assert lease is not None
    for _ in range(3):
        coordinator.clock.advance(59)
        with coordinator.store.transaction() as tx:
            leases.renew(tx, lease, 60)
    assert coordinator.work() == 0


def test_a_fenced_worker_publishes_nothing(coordinator: Served) -> None:
    """It slept through its lease: another worker has taken the round over, and the result that comes late is refused."""
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        slow = leases.take(tx, 60, "a worker")
    assert slow is not None
    with coordinator.store.reading() as tx:
        job = read_job(tx, slow, coordinator.settings)
    result = coordinator.worker._work(job, lambda: None)
    coordinator.clock.advance(60)
    with coordinator.store.transaction() as tx:
        quick = leases.take(tx, 60, "a worker")
    assert quick is not None
    assert quick.token == slow.token + 1
    with pytest.raises(LeaseLost), coordinator.store.transaction() as tx:
        publish(tx, slow, result)
    assert state(coordinator) == "AGGREGATING"
    coordinator.operator.problem("adapter-not-published", "GET", "/v1/runs/run/rounds/1/adapter?rank=2")
    with pytest.raises(LeaseLost), coordinator.store.transaction() as tx:
        leases.renew(tx, slow, 0)  # nor may it report a failure
    with coordinator.store.transaction() as tx:
        publish(tx, quick, result)
    assert state(coordinator) == "PUBLISHED"
    with pytest.raises(LeaseLost), coordinator.store.transaction() as tx:
        publish(tx, quick, result)  # once, and once only


def test_a_lost_lease_stops_the_work_between_modules(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        slow = leases.take(tx, 60, "a worker")
    assert slow is not None
    with coordinator.store.reading() as tx:
        job = read_job(tx, slow, coordinator.settings)
    calls = []

    def check_alive() -> None:
        calls.append(1)
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        coordinator.worker._work(job, check_alive)
    assert len(calls) == 1
    coordinator.check_storage()


def test_the_heartbeat_notices_a_takeover(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        lease = leases.take(tx, 60, "a worker")
    assert lease is not None
    coordinator.clock.advance(60)
    with coordinator.store.transaction() as tx:
        assert leases.take(tx, 60, "a worker") is not None
    heartbeat = Heartbeat(coordinator.store, lease, 0.003)

    def work_on() -> None:
        with heartbeat.running():
            while True:
                heartbeat.check()

    with pytest.raises(LeaseLost):
        work_on()


def test_five_failures_end_the_run_with_the_reason(coordinator: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The stored global update is damaged on the disk: no attempt can succeed."""
    ready(coordinator)
    with coordinator.store.reading() as tx:
        lease = leases.Lease(2, "run", 1, 0)
        work = read_job(tx, lease, coordinator.settings).work
    assert work is not None
    coordinator.blobs.path(work.previous.name).write_bytes(b"damaged")
    for failures, pause in enumerate((2, 4, 8, 16), start=1):
        assert coordinator.work() == 1
        assert state(coordinator) == "AGGREGATING"
        coordinator.clock.advance(pause - 0.1)
        assert coordinator.work() == 0, failures
        coordinator.clock.advance(0.1)
    assert coordinator.work() == 1
    assert state(coordinator) == "FAILED"
    status = coordinator.operator.expect(200, "GET", "/v1/runs/run")["status"]
    assert status["state"] == "FAILED"
    assert "failed 5 times" in status["reason"]
    assert "Safetensor" in status["reason"]
    assert coordinator.work() == 0
    assert list((coordinator.settings.data_dir / "temporary").iterdir()) == []


def test_a_failure_that_passes_is_forgotten(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(coordinator)
    with monkeypatch.context() as patch:
        patch.setattr(aggregate_round, "write_aggregate", lambda *given: [][1])
        assert coordinator.work() == 1
    coordinator.clock.advance(2)
    assert coordinator.work() == 1
    assert state(coordinator) == "PUBLISHED"
    coordinator.check_storage()


def test_aggregating_twice_gives_the_same_bytes(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        lease = leases.take(tx, 60, "a worker")
    assert lease is not None
    with coordinator.store.reading() as tx:
        job = read_job(tx, lease, coordinator.settings)
    twice = [Worker(coordinator.store, coordinator.blobs, coordinator.settings)._work(job, lambda: None) for _ in "ab"]
    assert twice[0].adapter == twice[1].adapter
    assert twice[0].slices == twice[1].slices


def test_a_storage_that_fails_costs_no_attempt(coordinator: Served) -> None:
    """The place fails, not the round: it is given back, and taken up again a little later, after those of other runs."""
    ready(coordinator)
    folder = coordinator.settings.data_dir / "temporary"
    folder.rmdir()
    folder.write_text("in the way")
    with pytest.raises(NotADirectoryError):
        coordinator.worker.step()
    folder.unlink()
    folder.mkdir()
    assert coordinator.work() == 0
    coordinator.clock.advance(leases.RELEASE_DELAY_S)
    assert coordinator.work() == 1
    assert state(coordinator) == "PUBLISHED"
    assert coordinator.round("run", 1)["summary"]["failures"] == 0


def test_a_missing_input_fails_the_attempt(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.reading() as tx:
        sha256 = inputs.list_frozen(tx, rounds.latest(tx, "run", 1))[0].upload.sha256
    coordinator.blobs.path(sha256).unlink()
    assert coordinator.worker.step()
    with coordinator.store.reading() as tx:
        round_ = rounds.latest(tx, "run", 1)
    assert (round_.state, round_.failures) == ("AGGREGATING", 1)
    assert round_.reason is not None
    assert sha256 in round_.reason


def round_of(coordinator: Served) -> Round:
    with coordinator.store.reading() as tx:
        return rounds.latest(tx, "run", 1)


def test_a_round_that_kills_its_worker_does_so_five_times(coordinator: Served) -> None:
    """By the memory it takes, say: nobody is left who could report the failure."""
    ready(coordinator)
    for attempt in range(5):
        with coordinator.store.transaction() as tx:
            assert leases.take(tx, 60, f"worker {attempt}") is not None
        assert round_of(coordinator).failures == attempt
        coordinator.clock.advance(60)
    with coordinator.store.transaction() as tx:
        assert leases.take(tx, 60, "another worker") is None
    assert state(coordinator) == "FAILED"
    waits = coordinator.round("run", 1)["summary"]["waiting_for"]
    assert waits.startswith("Waiting for the operator to retry the aggregation or cancel the run: worker worker 4 died")


def test_a_worker_that_is_asked_to_stop_gives_its_round_back(coordinator: Served) -> None:
    ready(coordinator)
    stopping = Worker(coordinator.store, coordinator.blobs, coordinator.settings, lambda: True)
    assert stopping.step()
    found = round_of(coordinator)
    assert (found.state, found.lease_holder, found.failures) == ("AGGREGATING", None, 0)
    assert coordinator.work() == 1
    assert state(coordinator) == "PUBLISHED"


def broken(coordinator: Served) -> tuple[str, str]:
    """A run FAILED by one of its two uploads, which was damaged on the disk: its id and the other's."""
    coordinator.run(rounds=1, min_clients=2)
    pair = [coordinator.enroll(name) for name in ("sound", "poison")]
    for one in pair:
        one.declare("run", 2)
    tasks = [one.task("run") for one in pair]
    run = coordinator.spec("run")
    data = [encode(tensors(run, 2, seed=seed)) for seed in (1, 2)]
    sound, poison = [one.upload(task, sent) for one, task, sent in zip(pair, tasks, data, strict=True)]
    damaged = coordinator.blobs.path(poison["sha256"])
    damaged.write_bytes(b"not an adapter")
    for pause in (2, 4, 8, 16, 0):
        assert coordinator.work() == 1
        coordinator.clock.advance(pause)
    assert state(coordinator) == "FAILED"
    return poison["upload_id"], sound["upload_id"]


def test_the_upload_that_breaks_the_aggregation_is_named_and_can_be_left_out(coordinator: Served) -> None:
    poison, sound = broken(coordinator)
    detail = coordinator.round("run", 1)
    assert f"Upload {poison}: " in detail["summary"]["reason"]
    assert sound not in detail["summary"]["reason"]
    assert {one["upload_id"] for one in detail["inputs"]} == {poison, sound}
    again = "/v1/runs/run/rounds/1/retry"
    coordinator.operator.problem("upload-not-found", "POST", again, json={"exclude": ["f" * 32]})
    coordinator.operator.problem("invalid-request", "POST", again, json={"exclude": [poison, sound]})
    told = coordinator.operator.expect(200, "POST", again, json={"exclude": [poison]})
    assert (told["state"], told["failures"]) == ("AGGREGATING", 0)
    assert coordinator.work() == 1
    inputs_ = {one["upload_id"]: one["excluded"] for one in coordinator.round("run", 1)["inputs"]}
    assert inputs_ == {poison: True, sound: False}
    assert coordinator.operator.expect(200, "GET", "/v1/runs/run")["status"]["state"] == "COMPLETED"
    coordinator.operator.problem("round-state", "POST", again, json={})


def test_a_failed_run_keeps_its_agents_waiting_and_can_be_cancelled(coordinator: Served) -> None:
    broken(coordinator)
    waiting = coordinator.enroll("waiting")
    waiting.declare("run", 2)
    assert waiting.call("GET", "/v1/runs/run/task").status_code == 204
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    waiting.problem("run-over", "GET", "/v1/runs/run/task")
    assert state(coordinator) == "ABANDONED"


def test_a_retry_fences_the_worker_that_is_at_it(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.transaction() as tx:
        slow = leases.take(tx, 60, "a worker")
    assert slow is not None
    coordinator.operator.expect(200, "POST", "/v1/runs/run/rounds/1/retry", json={})
    with pytest.raises(LeaseLost), coordinator.store.transaction() as tx:
        leases.renew(tx, slow, 60)
    assert coordinator.work() == 1


def test_a_missing_upload_is_named(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.reading() as tx:
        upload = inputs.list_frozen(tx, rounds.latest(tx, "run", 1))[0].upload
    coordinator.blobs.path(upload.sha256).unlink()
    assert coordinator.worker.step()
    reason = coordinator.round("run", 1)["summary"]["reason"]
    assert f"Upload {upload.id}: its file is missing; restore the blob {upload.sha256}" in reason


def test_a_round_whose_storage_fails_leaves_other_runs_their_turn(coordinator: Served) -> None:
    ready(coordinator)
    with coordinator.store.reading() as tx:
        sha256 = inputs.list_frozen(tx, rounds.latest(tx, "run", 1))[0].upload.sha256
    path = coordinator.blobs.path(sha256)
    path.unlink()
    path.mkdir()  # neither there nor missing
    coordinator.operator.expect(201, "POST", "/v1/runs", json=spec("other"))
    coordinator.operator.expect(200, "POST", "/v1/runs/other/start")
    with pytest.raises(OSError, match=r"device|directory"):
        coordinator.worker.step()
    assert coordinator.worker.step()
    told = coordinator.operator.expect(200, "GET", "/v1/runs/other/rounds/0")
    assert told["summary"]["state"] == "PUBLISHED"


def test_a_failure_that_cannot_be_explained_counts_still(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*given: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    ready(coordinator)
    monkeypatch.setattr(aggregate_round, "write_aggregate", lambda *given: [][1])
    monkeypatch.setattr(worker, "explain_failure", no_room)
    assert coordinator.worker.step()
    found = round_of(coordinator)
    assert (found.failures, found.lease_holder) == (1, None)
    assert "could not be told" in str(found.reason)


def test_a_decision_to_begin_is_void_once_the_run_is_paused(coordinator: Served) -> None:
    coordinator.run(min_clients=2)
    coordinator.enroll().declare("run", 2)
    with coordinator.store.transaction() as tx:
        run, round_ = runs.lock(tx, "run"), rounds.latest(tx, "run", 1)
        found = transitions.PendingTransition(machine.Begin((), tx.now), round_.id, round_.version)
        runs.apply_action(tx, run, "pause")
        transitions.apply_transition(tx, run, found)
        assert rounds.latest(tx, "run", 1).state == "OPEN"


def test_a_decision_on_what_has_changed_since_is_void(coordinator: Served) -> None:
    """Two decide at once that the quorum is missed; meanwhile an update was accepted."""
    coordinator.run(min_clients=2)
    pair = [coordinator.enroll() for _ in "ab"]
    for one in pair:
        one.declare("run", 2)
    task = pair[0].task("run")
    with coordinator.store.reading() as tx:
        round_ = rounds.latest(tx, "run", 1)
        stale = transitions.PendingTransition(machine.Abandon("Nobody came."), round_.id, round_.version)
    pair[0].upload(task, encode(tensors(coordinator.spec("run"), 2)))
    with coordinator.store.transaction() as tx:
        transitions.apply_transition(tx, runs.lock(tx, "run"), stale)
    assert (round_of(coordinator).state, round_of(coordinator).attempt) == ("COLLECTING", 1)
    with pytest.raises(Conflict), coordinator.store.transaction() as tx:
        rounds.touch(tx, round_)  # as it was read before
