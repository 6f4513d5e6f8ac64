"""The state machine of rounds, pure: hand cases, then any order of events that Hypothesis can think of."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flexlora_server import rounds as machine
from flexlora_server.rounds import (
    Abandon,
    Accept,
    Aggregate,
    Begin,
    Candidate,
    GiveUp,
    Refuse,
    Repeat,
    Retry,
    RoundView,
    Wait,
    admit,
    after_failure,
    after_publication,
    gather,
    judge,
    sample,
)
from flexlora_shared.messages.runs import RunSpec, RunState
from flexlora_shared.messages.status import RoundState
from flexlora_shared.problems import Code
from tests.kit import spec

NOW = datetime(2027, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
RUN_STATES: tuple[RunState, ...] = ("DRAFT", "RUNNING", "PAUSED", "COMPLETED", "CANCELLED", "FAILED")
ROUND_STATES: tuple[RoundState, ...] = ("OPEN", "COLLECTING", "AGGREGATING", "PUBLISHED", "ABANDONED", "FAILED")


def defined(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(spec(**{"min_clients": 2, "gather_timeout": 10.0, "round_timeout": 60.0} | changes))


OPENED = RoundView("RUNNING", number=1, attempt=1, state="OPEN", opened_at=NOW, deadline=None)
COLLECTING = replace(OPENED, state="COLLECTING", deadline=NOW + timedelta(seconds=60), assigned=3)


def seconds(number: float) -> datetime:
    return NOW + timedelta(seconds=number)


class TestGather:
    def test_too_few_wait_for_ever(self) -> None:
        decision = gather(defined(), OPENED, ["a"], seconds(1e6))
        assert decision == Wait("Waiting for participants: 1 of at least 2 are present.")

    def test_without_a_sample_size_all_who_are_present_begin(self) -> None:
        assert gather(defined(), OPENED, ["b", "c", "a"], NOW) == Begin(("a", "b", "c"), seconds(60))

    def test_a_sample_size_is_waited_for_until_patience_ends(self) -> None:
        wanted = defined(clients_per_round=4)
        waiting = Wait("Waiting for participants: 3 of 4 are present.", seconds(10))
        assert gather(wanted, OPENED, ["a", "b", "c"], NOW) == waiting
        assert gather(wanted, OPENED, ["a", "b", "c"], seconds(10) - TICK) == waiting
        assert gather(wanted, OPENED, ["a", "b", "c"], seconds(10)) == Begin(("a", "b", "c"), seconds(70))

    def test_a_full_sample_does_not_wait(self) -> None:
        decision = gather(defined(clients_per_round=2), OPENED, list("abcd"), NOW)
        assert isinstance(decision, Begin)
        assert len(decision.participants) == 2

    @pytest.mark.parametrize("state", [state for state in RUN_STATES if state != "RUNNING"])
    def test_only_a_running_run_begins_rounds(self, state: RunState) -> None:
        assert isinstance(gather(defined(), replace(OPENED, run_state=state), list("abcd"), seconds(1e6)), Wait)

    def test_over_selection_draws_more(self) -> None:
        decision = gather(defined(clients_per_round=2, over_selection=1), OPENED, list("abcdef"), NOW)
        assert isinstance(decision, Begin)
        assert len(decision.participants) == 3

    def test_whose_update_was_carried_takes_part_though_absent(self) -> None:
        decision = gather(defined(clients_per_round=2), OPENED, list("abcd"), NOW, ["x"])
        assert isinstance(decision, Begin)
        assert "x" in decision.participants
        assert len(decision.participants) == 2
        assert gather(defined(), OPENED, ["a"], seconds(10), ["x"]) == Begin(("a", "x"), seconds(70))

    def test_another_attempt_draws_another_sample(self) -> None:
        present = [f"client{n}" for n in range(40)]
        wanted = defined(clients_per_round=5)
        draws = [gather(wanted, replace(OPENED, attempt=n), present, NOW) for n in range(6)]
        assert len({draw.participants for draw in draws if isinstance(draw, Begin)}) == 6


clients = st.lists(st.uuids().map(str), min_size=1, max_size=20, unique=True)


@given(clients, st.integers(1, 20), st.text(max_size=5), st.randoms(use_true_random=False))
def test_a_sample_has_its_size_whatever_the_order(present: list[str], count: int, seed: str, shuffler: Any) -> None:
    drawn = sample(present, count, seed)
    assert len(set(drawn)) == len(drawn) == min(count, len(present))
    assert set(drawn) <= set(present)
    shuffled = list(present)
    shuffler.shuffle(shuffled)
    assert sample(shuffled, count, seed) == drawn


def test_samples_are_uniform() -> None:
    """Of 10 clients 3 are drawn 2,000 times: each about 600 times, six standard deviations (20.5) allowed."""
    present = [f"client{n}" for n in range(10)]
    drawn = Counter(client for seed in range(2000) for client in sample(present, 3, str(seed)))
    assert set(drawn) == set(present)
    assert max(abs(count - 600) for count in drawn.values()) < 123


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
        wanted = defined(clients_per_round=2, over_selection=1)
        assert judge(wanted, replace(COLLECTING, accepted=2), NOW) == Aggregate()
        waiting = Wait("Waiting for updates: 1 of 2 are accepted.", seconds(60))
        assert judge(wanted, replace(COLLECTING, accepted=1), NOW) == waiting

    def test_grace_waits_for_what_is_on_its_way(self) -> None:
        kind, under_way = defined(grace=5.0, min_updates=2), replace(COLLECTING, accepted=2, uploading=1)
        waiting = Wait("The deadline has passed; 1 updates on their way are waited for.", seconds(65))
        assert judge(kind, under_way, seconds(60)) == waiting
        assert judge(kind, replace(under_way, uploading=0), seconds(60)) == Aggregate()
        assert judge(kind, under_way, seconds(65)) == Aggregate()

    def test_a_round_that_lost_its_participants_does_not_wait(self) -> None:
        """All that are left, after revocations, are in: fewer than the quorum."""
        decision = judge(defined(min_updates=2), replace(COLLECTING, assigned=1, accepted=1), NOW)
        assert decision == Abandon("Only 1 of 1 updates can still come; the quorum is 2.")
        assert isinstance(judge(defined(), replace(COLLECTING, assigned=0, accepted=0), NOW), Abandon)

    def test_a_paused_run_finishes_its_round(self) -> None:
        assert judge(defined(), replace(COLLECTING, run_state="PAUSED", accepted=3), NOW) == Aggregate()


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
            "RUNNING": ["pause", "cancel"],
            "PAUSED": ["resume", "cancel"],
            "FAILED": ["cancel", "retry"],
        }
        assert allowed == expected.get(state, [])
        assert (state in machine.OVER) == (not allowed)


@pytest.mark.parametrize("state", ROUND_STATES)
def test_every_state_says_what_it_waits_for(state: RoundState) -> None:
    sentence = machine.waiting_for(defined(), replace(COLLECTING, state=state, reason="It broke."), ["a"], (), NOW)
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
    assert machine.waiting_for(defined(), view, ["a"], (), NOW) == sentence


class Life(RuleBasedStateMachine):
    """A run under any order of arrivals, uploads, pauses, failures and time; the rules of the docstrings always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = defined(clients_per_round=4, min_clients=2, min_updates=2, rounds=3)
        self.now, self.present = NOW, set[str]()
        self.round, self.run = OPENED, "RUNNING"
        self.assigned: tuple[str, ...] = ()
        self.accepted: dict[str, str] = {}
        self.failures, self.not_before = 0, NOW

    def view(self) -> RoundView:
        return replace(
            self.round,
            run_state=self.run,  # type: ignore[arg-type]
            assigned=len(self.assigned),
            accepted=len(self.accepted),
        )

    def move(self, to: RoundState) -> None:
        assert (self.round.state, to) in machine.ROUND_MOVES
        self.round = replace(self.round, state=to)

    def open(self, number: int, attempt: int) -> None:
        self.round = RoundView("RUNNING", number, attempt, "OPEN", self.now, None)
        self.assigned, self.accepted, self.failures = (), {}, 0

    @rule(client=st.sampled_from("abcdefgh"), here=st.booleans())
    def comes_or_goes(self, client: str, here: bool) -> None:
        (self.present.add if here else self.present.discard)(client)

    @rule(step=st.sampled_from([0.0, 1.0, 9.0, 59.0, 60.0]))
    def time_passes(self, step: float) -> None:
        self.now += timedelta(seconds=step)

    @rule(action=st.sampled_from(["pause", "resume", "pause", "resume", "retry", "cancel"]))
    def operator(self, action: machine.Action) -> None:
        after = machine.next_run_state(self.run, action)  # type: ignore[arg-type]
        if after is None:
            return
        self.run = after
        if action == "retry":
            self.failures = 0
            self.move("AGGREGATING")
        if after == "CANCELLED":
            self.move("ABANDONED")

    @precondition(lambda self: self.round.state == "OPEN")
    @rule()
    def asked_to_gather(self) -> None:
        decision = gather(self.spec, self.view(), sorted(self.present), self.now)
        if isinstance(decision, Wait):
            impatient = self.now >= self.round.opened_at + timedelta(seconds=10) or len(self.present) >= 4
            assert self.run != "RUNNING" or len(self.present) < 2 or not impatient
            return
        assert self.run == "RUNNING"
        assert 2 <= len(decision.participants) <= 4
        assert set(decision.participants) <= self.present
        assert decision.deadline == self.now + timedelta(seconds=60)
        self.move("COLLECTING")
        self.assigned = decision.participants
        self.round = replace(self.round, deadline=decision.deadline)

    @rule(client=st.sampled_from("abcdefgh"), sha256=st.sampled_from(["00", "ff"]))
    def uploads(self, client: str, sha256: str) -> None:
        before = self.accepted.get(client)
        candidate = Candidate(sha256, client in self.assigned, accepted_sha256=before)
        decision = admit(self.spec, self.view(), candidate, self.round.number + 1, self.now)
        if isinstance(decision, Accept):
            assert decision.counts_in == self.round.number
            assert self.round.state == "COLLECTING"
            assert self.run not in machine.OVER
            assert client in self.assigned
            assert before is None
            assert self.round.deadline is not None
            assert self.now < self.round.deadline or len(self.accepted) < self.spec.min_updates
            self.accepted[client] = sha256
        else:
            assert isinstance(decision, Repeat) == (before == sha256)

    @precondition(lambda self: self.round.state == "COLLECTING")
    @rule()
    def asked_to_judge(self) -> None:
        assert self.round.deadline is not None
        late = self.now >= self.round.deadline
        match judge(self.spec, self.view(), self.now):
            case Aggregate():
                assert len(self.accepted) >= self.spec.min_updates
                assert late or len(self.accepted) == len(self.assigned)
                self.move("AGGREGATING")
            case Abandon():
                assert late
                assert len(self.accepted) < self.spec.min_updates
                self.move("ABANDONED")
                self.open(self.round.number, self.round.attempt + 1)
            case Wait(until=until):
                assert not late
                assert until == self.round.deadline

    @precondition(lambda self: self.round.state == "AGGREGATING" and self.now >= self.not_before)
    @rule(works=st.booleans())
    def worker(self, works: bool) -> None:
        if works:
            self.move("PUBLISHED")
            if after_publication(self.spec, self.round.number) == "complete":
                self.run = "COMPLETED"
            else:
                self.open(self.round.number + 1, 1)
            return
        self.failures += 1
        decision = after_failure(self.failures, self.now)
        if isinstance(decision, Retry):
            assert self.failures < 5
            assert decision.at > self.now
            self.not_before = decision.at
        else:
            assert self.failures == 5
            self.move("FAILED")
            self.run = "FAILED"

    @invariant()
    def a_round_that_is_over_goes_with_a_run_that_is_over(self) -> None:
        assert (self.round.state in {"PUBLISHED", "ABANDONED"}) == (self.run in machine.OVER)
        assert (self.round.state == "FAILED") == (self.run == "FAILED")
        assert 1 <= self.round.number <= self.spec.rounds

    def teardown(self) -> None:
        """Every run ends: with everyone present, time passing and a working worker, in a few steps."""
        self.operator("resume")
        self.operator("retry")
        self.present = set("abcdefgh")
        for _ in range(60):
            if self.run in machine.OVER:
                return
            self.now += timedelta(seconds=10)
            if self.round.state == "OPEN":
                self.asked_to_gather()
                for client in self.assigned:
                    self.uploads(client, "00")
            elif self.round.state == "COLLECTING":
                self.asked_to_judge()
            else:
                self.now = max(self.now, self.not_before)
                self.worker(True)
        raise AssertionError(f"the run never ended: {self.view()}")


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
