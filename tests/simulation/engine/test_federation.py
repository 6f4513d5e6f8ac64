"""What becomes of updates in virtual time: in time, late, not needed, failed or never sent."""

from typing import Any

import pytest

from flexlora_client.errors import DataError, DivergedError
from flexlora_server.worker import aggregate_round
from flexlora_simulation.engine.jobs import TrainedUpdate, TrainingJob
from flexlora_simulation.errors import SimulationError
from tests.simulation.engine.conftest import Run
from tests.support.simulated import Nudging

QUICK = {"max_steps": 1, "batch_size": 4, "max_length": 16}
SLOW_ONE = [{"rank": 4, "share": 3}, {"rank": 2, "share": 1, "speed": 0.4}]  # a step of 2.5 seconds


def outcomes(run: Any) -> dict[str, int]:
    counts: dict[str, int] = run.participants.outcome.value_counts().to_dict()
    return counts


def test_updates_that_come_after_their_round_are_not_trained(run: Run) -> None:
    results, executor = run(
        resources=SLOW_ONE, run={"clients_per_round": 3, "over_selection": 1, "rounds": 2, "training": QUICK}
    )
    assert list(results.rounds.virtual_seconds) == [0.0, 1.0, 2.0], "the slow one is not waited for"
    discarded = results.participants[results.participants.outcome == "discarded"]
    assert list(discarded["round"]) == [1], "it is at work still when the second round begins, which it has no place in"
    assert list(discarded.virtual_seconds) == [2.5]
    assert list(discarded.examples) == list(discarded.bytes_up) == [0]
    assert len(executor.trained) == 6


def test_late_updates_count_in_the_round_that_runs_when_they_come(run: Run) -> None:
    results, executor = run(
        resources=SLOW_ONE, run={"over_selection": 1, "rounds": 4, "late_updates": "next-round", "training": QUICK}
    )
    late = results.participants[results.participants.outcome == "late"]
    assert list(late["round"]) == [1], "that of round 4 finds no round to count in"
    assert list(late.virtual_seconds) == [2.5]
    its_rounds = results.participants[results.participants.participant == late.participant.item()]
    assert list(its_rounds["round"]) == [1, 4], "who is at work is not present"
    assert list(its_rounds.outcome) == ["late", "discarded"]
    assert len(executor.trained) == results.participants.outcome.isin(["accepted", "late"]).sum()


def test_agents_train_the_steps_that_fit_before_the_deadline(run: Run) -> None:
    training = QUICK | {"max_steps": None, "epochs": 5}  # 15 examples, 4 a step: 20 steps
    results, executor = run(
        resources=[{"rank": 2}, {"rank": 4, "speed": 4.0}],
        run={"rounds": 1, "round_timeout": 17.0, "clients_per_round": 4, "training": training},
    )
    steps = {job.task.rank: job.max_steps for job in executor.trained}
    assert steps == {2: 12, 4: None}, "17 seconds less the agent's margin of 5; all 20"
    by_rank = results.participants.groupby("rank").virtual_seconds.max().to_dict()
    assert by_rank == {2: 12.0, 4: 5.0}


def test_slow_transfers_make_updates_late(run: Run) -> None:
    """The slice takes 5 seconds down, 5 up: half of what is left when it arrives is for training, and the upload is late."""
    training = QUICK | {"max_steps": 10}
    results, _ = run(
        resources=[{"rank": 4, "share": 3}, {"rank": 8, "share": 1}],
        timing={"bytes_per_second": 1000.0},
        run={
            "rounds": 2,
            "round_timeout": 18.0,
            "clients_per_round": 4,
            "min_updates": 2,
            "min_clients": 3,
            "late_updates": "next-round",
            "training": training,
        },
    )
    assert outcomes(results) == {"accepted": 6, "late": 1}
    assert results.rounds.virtual_seconds[1] == 18.0


def test_an_upload_that_was_announced_in_time_is_waited_for(run: Run) -> None:
    results, _ = run(
        resources=[{"rank": 4, "share": 3}, {"rank": 8, "share": 1}],
        timing={"bytes_per_second": 1000.0},
        run={
            "rounds": 1,
            "round_timeout": 18.0,
            "grace": 30.0,
            "clients_per_round": 4,
            "training": QUICK | {"max_steps": 10},
        },
    )
    assert outcomes(results) == {"accepted": 4}
    assert results.rounds.virtual_seconds[1] == results.participants.virtual_seconds.max() > 18.0


class Failing(Nudging):
    """The training of two participants ends with errors of their own; `FAILS` says which."""

    FAILS: dict[str, Exception] = {}

    def train(self, job: TrainingJob) -> TrainedUpdate:
        if job.participant in self.FAILS:
            raise self.FAILS[job.participant]
        return super().train(job)


class SomeFail(Failing):
    FAILS = {"participant-00001": DivergedError("the loss is nan at step 1.")}


class AllFail(Failing):
    FAILS = {f"participant-0000{number}": DataError("no example has a token to learn.") for number in range(4)}


def test_a_participant_that_fails_is_told_with_its_reason_and_the_run_goes_on(run: Run) -> None:
    results, _ = run(SomeFail, run={"clients_per_round": 4, "rounds": 2, "training": QUICK})
    failed = results.participants[results.participants.outcome == "failed"]
    assert set(failed.participant) == {"participant-00001"}
    assert list(failed["round"]) == [1, 2], "it asks for work again in the next round"
    assert set(failed.reason) == {"the loss is nan at step 1."}
    assert list(results.rounds.accepted) == [0, 3, 3]
    assert list(results.rounds.virtual_seconds) == [0.0, 1.0, 2.0], "the round does not wait for it"


def test_where_everybody_fails_the_error_says_why(run: Run) -> None:
    with pytest.raises(
        SimulationError, match=r"round 1 does not go on.*participant-0000\d failed: no example has a token"
    ):
        run(AllFail, run={"clients_per_round": 4, "training": QUICK})


def test_a_round_that_misses_its_quorum_is_held_again(run: Run) -> None:
    results, _ = run(
        timing={"dropout": 0.5, "jitter": 0.3},
        run={"min_updates": 3, "min_clients": 3, "rounds": 2, "round_timeout": 60.0, "training": QUICK},
    )
    assert results.rounds.attempt.max() > 1
    assert list(results.rounds.accepted[1:]) == [3, 3]
    places = results.participants.groupby(["round", "participant"]).outcome.apply(list)
    assert all(found.count("accepted") <= 1 for found in places), "what was accepted is carried over, not trained again"


def test_a_round_waits_until_enough_participants_are_available(run: Run) -> None:
    results, _ = run(
        timing={"available": 0.4}, run={"clients_per_round": 4, "min_clients": 4, "rounds": 1, "training": QUICK}
    )
    assert results.rounds.virtual_seconds[1] > 20.0, "the first draws have too few"
    assert outcomes(results) == {"accepted": 4}


def test_participants_that_never_come_end_the_run_with_a_sentence(run: Run) -> None:
    with pytest.raises(SimulationError, match=r"round 1 does not go on. Waiting for participants: 4 of at least 5"):
        run(run={"clients_per_round": 5, "min_clients": 5, "training": QUICK})


def test_a_failing_aggregation_is_tried_again_in_virtual_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, write = iter([True, True, False]), aggregate_round.write_aggregate

    def sometimes(*arguments: Any) -> Any:
        if next(failing):
            raise RuntimeError("it does not converge")
        return write(*arguments)

    monkeypatch.setattr(aggregate_round, "write_aggregate", sometimes)
    results, _ = run(run={"rounds": 1, "training": QUICK})
    assert results.rounds.virtual_seconds[1] == 1.0 + 2.0 + 4.0


@pytest.mark.slow
def test_an_aggregation_that_never_succeeds_ends_the_run_and_may_be_mended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise RuntimeError("it does not converge")

    with monkeypatch.context() as patch:
        patch.setattr(aggregate_round, "write_aggregate", never)
        with pytest.raises(SimulationError, match=r"round 1 could not be aggregated:.*it does not converge"):
            run(run={"rounds": 1, "training": QUICK})
    results, _ = run(run={"rounds": 1, "training": QUICK})
    assert len(results.rounds) == 2
