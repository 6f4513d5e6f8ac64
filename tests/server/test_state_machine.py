"""The state machine: how a round ends, the allowed changes of state, and what each state waits for."""

from dataclasses import replace
from typing import get_args

import pytest

from flexlora_server import state_machine as machine
from flexlora_server.lifecycle.wait_reasons import waiting_for
from flexlora_server.state_machine import (
    Abandon,
    Aggregate,
    GiveUp,
    Retry,
    RoundView,
    Wait,
    after_failure,
    after_publication,
    judge,
)
from flexlora_shared.messages.status import RoundState
from tests.support.round_views import COLLECTING, NOW, OPENED, ROUND_STATES, RUN_STATES, TICK, defined, seconds


class TestJudge:
    def test_everyone_in_ends_the_round_before_its_deadline(self) -> None:
        assert judge(defined(), replace(COLLECTING, accepted=3), NOW) == Aggregate()

    def test_the_deadline_is_exact(self) -> None:
        quorum = replace(COLLECTING, accepted=2)
        waiting = judge(defined(min_updates=2), quorum, seconds(60) - TICK)
        assert waiting == Wait("Waiting for updates: 2 of 3 are accepted.", seconds(60))
        assert judge(defined(min_updates=2), quorum, seconds(60)) == Aggregate()

    def test_a_missed_quorum_abandons(self) -> None:
        decision = judge(defined(min_updates=2), replace(COLLECTING, accepted=1), seconds(60))
        assert decision == Abandon("Only 1 of 3 updates came before the deadline; the quorum is 2.")

    def test_over_selection_ends_with_as_many_as_were_wanted(self) -> None:
        spec = defined(clients_per_round=2, over_selection=1)
        assert judge(spec, replace(COLLECTING, accepted=2), NOW) == Aggregate()
        waiting = Wait("Waiting for updates: 1 of 2 are accepted.", seconds(60))
        assert judge(spec, replace(COLLECTING, accepted=1), NOW) == waiting

    def test_grace_waits_for_what_is_on_its_way(self) -> None:
        kind, under_way = defined(grace=5.0, min_updates=2), replace(COLLECTING, accepted=2, uploading=1)
        waiting = Wait("The deadline has passed; 1 updates on their way are waited for.", seconds(65))
        assert judge(kind, under_way, seconds(60)) == waiting
        assert judge(kind, replace(under_way, uploading=0), seconds(60)) == Aggregate()
        assert judge(kind, under_way, seconds(65)) == Aggregate()

    def test_a_round_that_lost_its_participants_does_not_wait(self) -> None:
        """Those that are left, after revocations and failures, are fewer than the quorum."""
        for accepted in (0, 1):
            decision = judge(defined(min_updates=2), replace(COLLECTING, assigned=1, accepted=accepted), NOW)
            assert decision == Abandon("Only 1 updates can still come; the quorum is 2.")
        decision = judge(defined(min_updates=3), replace(COLLECTING, assigned=1, failed=2), NOW)
        assert decision == Abandon("Only 1 updates can still come, 2 participants failed; the quorum is 3.")
        assert isinstance(judge(defined(), replace(COLLECTING, assigned=0, accepted=0), NOW), Abandon)

    def test_who_failed_is_not_waited_for(self) -> None:
        left = replace(COLLECTING, assigned=2, accepted=1, failed=1)
        waiting = Wait("Waiting for updates: 1 of 2 are accepted, 1 participant failed.", seconds(60))
        assert judge(defined(min_updates=2), left, NOW) == waiting
        assert judge(defined(min_updates=2), replace(left, accepted=2), NOW) == Aggregate()

    def test_a_paused_run_finishes_its_round(self) -> None:
        assert judge(defined(), replace(COLLECTING, run_state="PAUSED", accepted=3), NOW) == Aggregate()


def test_failures_back_off_and_end() -> None:
    assert [after_failure(n, NOW) for n in range(1, 5)] == [Retry(seconds(2**n)) for n in range(1, 5)]
    assert after_failure(5, NOW) == after_failure(6, NOW) == GiveUp()


def test_the_last_round_completes_the_run() -> None:
    assert [after_publication(defined(rounds=2), n) for n in (0, 1, 2)] == ["next", "next", "complete"]


def test_moves_are_the_drawn_ones() -> None:
    """States that end a round or a run lead nowhere, and every other state leads somewhere."""
    assert {before for before, _ in machine.ROUND_MOVES} == set(ROUND_STATES) - {"PUBLISHED", "ABANDONED"}
    assert {after for _, after in machine.ROUND_MOVES} == set(ROUND_STATES) - {"OPEN"}
    for state in RUN_STATES:
        allowed = [action for action in get_args(machine.Action) if machine.next_run_state(state, action)]
        expected = {
            "DRAFT": ["start", "cancel"],
            "RUNNING": ["pause", "cancel", "rollback"],
            "PAUSED": ["resume", "cancel", "rollback"],
            "FAILED": ["cancel", "retry", "rollback"],
            "COMPLETED": ["rollback"],
        }
        assert allowed == expected.get(state, [])
        ends = all(machine.next_run_state(state, action) == state for action in allowed)
        assert (state in machine.FINAL_STATES) == ends


@pytest.mark.parametrize("state", ROUND_STATES)
def test_every_state_says_what_it_waits_for(state: RoundState) -> None:
    sentence = waiting_for(defined(), replace(COLLECTING, state=state, reason="It broke."), {"a": "a"}, (), NOW)
    assert sentence.endswith((".", "UTC."))


AGGREGATING = replace(COLLECTING, state="AGGREGATING", failures=1, reason="the disk failed")


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (OPENED, "Waiting for participants: 1 of at least 2 are present."),
        (replace(COLLECTING, accepted=1), "Waiting for updates: 1 of 3 are accepted. Until 2027-01-01 00:01:00 UTC."),
        (
            replace(AGGREGATING, leased=True, lease_until=seconds(30)),
            "A worker aggregates the updates (attempt 2 of 5); it holds the round until 2027-01-01 00:00:30 UTC. "
            "What ended the last one: the disk failed",
        ),
        (
            replace(AGGREGATING, lease_until=seconds(2)),
            "Waiting to aggregate the updates again (attempt 2 of 5), until 2027-01-01 00:00:02 UTC. "
            "What ended the last one: the disk failed",
        ),
        (
            replace(AGGREGATING, failures=0, reason=None),
            "Waiting for a worker to aggregate the updates (attempt 1 of 5).",
        ),
        (
            replace(AGGREGATING, state="FAILED"),
            "Waiting for the operator to retry the aggregation or cancel the run: the disk failed",
        ),
    ],
)
def test_what_a_round_waits_for_and_until_when(view: RoundView, sentence: str) -> None:
    assert waiting_for(defined(), view, {"a": "a"}, (), NOW) == sentence
