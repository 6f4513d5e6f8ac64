"""The state machine: which update is accepted in which round, and the problem that says why one is not."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from flexlora_server.state_machine import Accept, Candidate, Refuse, Repeat, RoundView, admit
from flexlora_shared.messages.runs import RunSpec, RunState
from flexlora_shared.messages.status import RoundState
from flexlora_shared.problems import Code
from tests.support.round_views import COLLECTING, NOW, OPENED, ROUND_STATES, RUN_STATES, TICK, defined, seconds


def admitted(
    view: RoundView,
    now: datetime = NOW,
    sha256: str = "aa",
    next_number: int = 2,
    kind: RunSpec | None = None,
    **has: Any,
) -> Accept | Repeat | Refuse:
    return admit(kind or defined(), view, Candidate(sha256, **{"assigned": True, **has}), next_number, now)


def refused(decision: Accept | Repeat | Refuse) -> Code:
    assert isinstance(decision, Refuse)
    return decision.code


class TestAdmit:
    def test_an_assigned_update_in_time_counts(self) -> None:
        assert admitted(COLLECTING, seconds(60) - TICK) == Accept(1)

    def test_the_deadline_itself_is_late(self) -> None:
        assert refused(admitted(replace(COLLECTING, accepted=1), seconds(60))) == Code.ROUND_CLOSED

    def test_a_round_that_is_about_to_open_again_takes_it(self) -> None:
        assert admitted(COLLECTING, seconds(60)) == Accept(1)

    def test_nothing_is_late_in_a_round_without_its_quorum_even_while_others_have_grace(self) -> None:
        """It could be abandoned yet, and what counts in the next round would have no place in its next attempt."""
        kind = defined(grace=5.0, min_updates=2, rounds=3, late_updates="next-round")
        for accepted in (0, 1):
            view = replace(COLLECTING, accepted=accepted, uploading=1)
            assert admitted(view, seconds(61), kind=kind, next_number=2) == Accept(1)
        assert admitted(replace(COLLECTING, accepted=2, uploading=1), seconds(61), kind=kind, next_number=2) == Accept(
            2
        )

    def test_grace_is_for_what_was_announced(self) -> None:
        kind, view = defined(grace=5.0), replace(COLLECTING, accepted=1, uploading=1)
        assert admitted(view, seconds(65) - TICK, kind=kind, announced=True) == Accept(1)
        assert refused(admitted(view, seconds(65), kind=kind, announced=True)) == Code.ROUND_CLOSED
        assert refused(admitted(view, seconds(60), kind=kind)) == Code.ROUND_CLOSED

    @pytest.mark.parametrize("state", ["COLLECTING", "AGGREGATING", "PUBLISHED"])
    def test_a_late_update_counts_in_the_next_round(self, state: RoundState) -> None:
        late, kind = replace(COLLECTING, state=state, accepted=2), defined(late_updates="next-round", rounds=3)
        assert admitted(late, seconds(60), kind=kind, next_number=3) == Accept(3)
        assert refused(admitted(late, seconds(60), kind=kind, next_number=4)) == Code.ROUND_CLOSED
        assert refused(admitted(late, seconds(60), next_number=3)) == Code.ROUND_CLOSED

    def test_what_an_abandoned_attempt_trained_counts_in_the_next(self) -> None:
        assert admitted(replace(OPENED, attempt=2)) == Accept(1)

    @pytest.mark.parametrize("state", ROUND_STATES)
    @pytest.mark.parametrize("run_state", RUN_STATES)
    def test_what_counts_keeps_its_receipt_in_every_state(self, state: RoundState, run_state: RunState) -> None:
        view = replace(COLLECTING, state=state, run_state=run_state)
        assert admitted(view, seconds(1e6), accepted_sha256="aa") == Repeat()
        assert refused(admitted(view, sha256="bb", accepted_sha256="aa")) == Code.ALREADY_ACCEPTED

    @pytest.mark.parametrize(
        ("state", "run_state", "assigned", "code"),
        [
            ("OPEN", "RUNNING", False, Code.ROUND_NOT_COLLECTING),
            ("COLLECTING", "RUNNING", False, Code.NOT_ASSIGNED),
            ("AGGREGATING", "RUNNING", True, Code.ROUND_CLOSED),
            ("PUBLISHED", "COMPLETED", True, Code.ROUND_CLOSED),
            ("PUBLISHED", "RUNNING", False, Code.NOT_ASSIGNED),
            ("ABANDONED", "CANCELLED", True, Code.ROUND_CLOSED),
            ("ABANDONED", "RUNNING", True, Code.ROUND_CLOSED),
            ("FAILED", "FAILED", True, Code.ROUND_CLOSED),
        ],
    )
    def test_refusals(self, state: RoundState, run_state: RunState, assigned: bool, code: Code) -> None:
        view = replace(COLLECTING, state=state, run_state=run_state)
        assert refused(admitted(view, assigned=assigned)) == code

    def test_no_late_update_for_a_run_that_has_stopped(self) -> None:
        for run_state in ("COMPLETED", "CANCELLED", "FAILED"):
            view = replace(COLLECTING, state="PUBLISHED", run_state=run_state)
            assert refused(admitted(view, kind=defined(late_updates="next-round", rounds=9))) == Code.ROUND_CLOSED
