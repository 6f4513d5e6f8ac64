"""The state machine: any sequence of events that Hypothesis draws keeps the invariants of rounds."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flexlora_server import state_machine as machine
from flexlora_server.state_machine import (
    Abandon,
    Accept,
    Aggregate,
    Candidate,
    Refuse,
    Repeat,
    Retry,
    RoundView,
    Wait,
    admit,
    after_failure,
    after_publication,
    counts_as_failed,
    gather,
    judge,
)
from flexlora_shared.messages.status import RoundState
from tests.support.round_views import NOW, OPENED, defined


class Life(RuleBasedStateMachine):
    """A run under any order of arrivals, uploads, pauses, failures and time; the rules of the docstrings always hold."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = defined(clients_per_round=4, min_clients=2, min_updates=2, rounds=3)
        self.now, self.present = NOW, set[str]()
        self.round, self.run = OPENED, "RUNNING"
        self.assigned: tuple[str, ...] = ()
        self.accepted: dict[str, str] = {}
        self.failed = set[str]()
        self.failures, self.not_before = 0, NOW
        self.rollbacks = 0

    def view(self) -> RoundView:
        return replace(
            self.round,
            run_state=self.run,  # type: ignore[arg-type]
            assigned=len(self.waited_for()),
            accepted=len(self.accepted),
            failed=len(self.failed),
        )

    def waited_for(self) -> set[str]:
        return set(self.assigned) - self.failed

    def move(self, to: RoundState) -> None:
        assert (self.round.state, to) in machine.ROUND_MOVES
        self.round = replace(self.round, state=to)

    def open(self, number: int, attempt: int) -> None:
        if number > self.round.number:
            self.failed = set()
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

    @precondition(lambda self: self.rollbacks < 2)
    @rule()
    def rolls_back(self) -> None:
        """What a round under way had accepted counts no more; the next one begins, or a run that was complete stays so."""
        after = machine.next_run_state(self.run, "rollback")  # type: ignore[arg-type]
        if after is None:
            return
        before, plan = self.round, machine.roll_back(self.view())
        assert plan.abandons == (before.state != "PUBLISHED") == (self.run != "COMPLETED")
        if plan.abandons:
            self.move("ABANDONED")
            assert (plan.number, plan.attempt) == (before.number, before.attempt + 1)
        else:
            assert (plan.number, plan.attempt) == (before.number + 1, 1)
        self.rollbacks += 1
        self.run = after
        self.round = replace(before, number=plan.number, attempt=plan.attempt, state="PUBLISHED")
        late = Candidate("00", True, rolled_back=True)
        assert isinstance(admit(self.spec, self.view(), late, plan.number + 1, self.now), Refuse)
        if after_publication(self.spec, plan.number) == "complete":
            self.run = "COMPLETED"
        else:
            self.open(plan.number + 1, 1)

    @precondition(lambda self: self.round.state == "OPEN")
    @rule()
    def asked_to_gather(self) -> None:
        available = self.present - self.failed
        decision = gather(self.spec, self.view(), {client: client for client in available}, self.now)
        if isinstance(decision, Wait):
            impatient = self.now >= self.round.opened_at + timedelta(seconds=10) or len(available) >= 4
            assert self.run != "RUNNING" or len(available) < 2 or not impatient
            return
        assert self.run == "RUNNING"
        assert 2 <= len(decision.participants) <= 4
        assert set(decision.participants) <= available
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
            assert self.run not in machine.FINAL_STATES
            assert client in self.assigned
            assert before is None
            assert self.round.deadline is not None
            assert self.now < self.round.deadline or len(self.accepted) < self.spec.min_updates
            self.accepted[client] = sha256
            self.failed.discard(client)  # an update wins, whenever it comes
        else:
            assert isinstance(decision, Repeat) == (before == sha256)

    @rule(client=st.sampled_from("abcdefgh"))
    def fails(self, client: str) -> None:
        assigned, accepted = client in self.assigned, client in self.accepted
        decision = counts_as_failed(self.view(), assigned=assigned, accepted=accepted)
        assert isinstance(decision, Refuse) == (not assigned)
        if decision is True:
            assert self.round.state == "COLLECTING"
            assert not accepted
            self.failed.add(client)

    @rule(client=st.sampled_from("abcdefgh"))
    def declares_anew(self, client: str) -> None:
        self.failed.discard(client)

    @precondition(lambda self: self.round.state == "COLLECTING")
    @rule()
    def asked_to_judge(self) -> None:
        assert self.round.deadline is not None
        late = self.now >= self.round.deadline
        match judge(self.spec, self.view(), self.now):
            case Aggregate():
                assert len(self.accepted) >= self.spec.min_updates
                assert late or self.accepted.keys() == self.waited_for()
                self.move("AGGREGATING")
            case Abandon():
                assert len(self.accepted) < self.spec.min_updates
                assert late or len(self.waited_for()) < self.spec.min_updates
                self.move("ABANDONED")
                self.open(self.round.number, self.round.attempt + 1)
            case Wait(until=until):
                assert not late
                assert until == self.round.deadline
                assert len(self.waited_for()) >= self.spec.min_updates
                assert self.waited_for() > self.accepted.keys()

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
        assert (self.round.state in {"PUBLISHED", "ABANDONED"}) == (self.run in machine.FINAL_STATES)
        assert (self.round.state == "FAILED") == (self.run == "FAILED")
        assert 1 <= self.round.number <= self.spec.rounds + self.rollbacks

    def teardown(self) -> None:
        """Every run ends: with everyone present, time passing and a working worker, in a few steps."""
        self.operator("resume")
        self.operator("retry")
        self.present, self.failed = set("abcdefgh"), set()
        for _ in range(60):
            if self.run in machine.FINAL_STATES:
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
