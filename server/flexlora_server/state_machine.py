"""The state machine of runs and rounds. Pure: no database, no files, and the clock is an argument.

    Run:    DRAFT -> RUNNING <-> PAUSED -> COMPLETED | CANCELLED
                      |  ^
                      v  | (the operator retries)
                     FAILED -> CANCELLED
    Round:  OPEN -> COLLECTING -> AGGREGATING -> PUBLISHED
              |         |            |    ^
              |         |            v    | (the operator retries)
              |         |            FAILED (fifth failed aggregation)
              +---------+--> ABANDONED

Who moves it: the operator starts, pauses, resumes, cancels and retries; `gather` and `judge` are asked whenever something arrived
or time has passed; the worker publishes, and its failures go through `after_failure`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from flexlora_shared.messages.runs import RunSpec, RunState
from flexlora_shared.messages.status import RoundState
from flexlora_shared.problems import Code

MAX_FAILURES = 5
ROUND_MOVES: frozenset[tuple[RoundState, RoundState]] = frozenset(
    {
        ("OPEN", "COLLECTING"),
        ("OPEN", "ABANDONED"),
        ("COLLECTING", "AGGREGATING"),
        ("COLLECTING", "ABANDONED"),
        ("AGGREGATING", "PUBLISHED"),
        ("AGGREGATING", "ABANDONED"),
        ("AGGREGATING", "FAILED"),
        ("FAILED", "AGGREGATING"),
        ("FAILED", "ABANDONED"),
    }
)
Action = Literal["start", "pause", "resume", "cancel", "retry"]
RUN_MOVES: dict[tuple[RunState, Action], RunState] = {
    ("DRAFT", "start"): "RUNNING",
    ("RUNNING", "pause"): "PAUSED",
    ("PAUSED", "resume"): "RUNNING",
    ("DRAFT", "cancel"): "CANCELLED",
    ("RUNNING", "cancel"): "CANCELLED",
    ("PAUSED", "cancel"): "CANCELLED",
    ("FAILED", "cancel"): "CANCELLED",
    ("FAILED", "retry"): "RUNNING",
}
OVER: frozenset[RunState] = frozenset({"COMPLETED", "CANCELLED"})  # a FAILED run waits for its operator


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet; `why` is one sentence for people, `until` when time alone may change it."""

    why: str
    until: datetime | None = None


@dataclass(frozen=True)
class Begin:
    """Fix these participants, in order, and this deadline."""

    participants: tuple[str, ...]
    deadline: datetime


@dataclass(frozen=True)
class Aggregate:
    """Freeze the accepted uploads and hand the round to a worker."""


@dataclass(frozen=True)
class Abandon:
    """The quorum was missed; the round opens again as its next attempt."""

    why: str


@dataclass(frozen=True)
class Refuse:
    """An upload that may not be accepted, with the problem's code and sentence."""

    code: Code
    detail: str


@dataclass(frozen=True)
class Accept:
    """An upload that counts from now on, in the aggregation of round `counts_in`: a late one in a later round's."""

    counts_in: int


@dataclass(frozen=True)
class Repeat:
    """The same bytes were accepted before: the same receipt again."""


@dataclass(frozen=True)
class RoundView:
    """What the machine needs to know of a round.

    Who was revoked before its update was accepted is not waited for: it counts in neither `assigned` nor `declared`.
    """

    run_state: RunState
    number: int
    attempt: int
    state: RoundState
    opened_at: datetime
    deadline: datetime | None
    assigned: int = 0
    accepted: int = 0
    uploading: int = 0  # updates that were announced before the deadline and are on their way
    declared: int = 0
    failures: int = 0
    reason: str | None = None  # of its last failure
    leased: bool = False  # a worker aggregates it
    lease_until: datetime | None = None  # when the lease ends, or the next attempt may begin


def next_run_state(state: RunState, action: Action) -> RunState | None:
    """The state `action` leads to, or None where the state does not allow it."""
    return RUN_MOVES.get((state, action))


def gather(
    spec: RunSpec, round_: RoundView, present: Sequence[str], now: datetime, carried: Sequence[str] = ()
) -> Begin | Wait:
    """Whether an OPEN round begins, with whom, and until when.

    `present` are the participants seen recently; `carried` those whose updates an abandoned attempt handed on: they take
    part anyway.
    """
    if round_.run_state != "RUNNING":
        return Wait("The run is paused; resume it to go on.")
    here = len({*present, *carried}) if carried else len(present)  # of thousands, only counted while they wait
    wanted = (
        spec.clients_per_round + spec.over_selection
        if spec.clients_per_round
        else max(spec.min_clients, round_.declared)
    )
    patience = round_.opened_at + timedelta(seconds=spec.gather_timeout)
    if here < spec.min_clients:
        return Wait(f"Waiting for participants: {here} of at least {spec.min_clients} are present.")
    if here < wanted and now < patience:
        return Wait(f"Waiting for participants: {here} of {wanted} are present.", patience)
    others = sorted({*present} - {*carried})
    room = max(0, wanted - len(set(carried))) if spec.clients_per_round else len(others)
    chosen = sample(others, room, f"{spec.seed}:{round_.number}:{round_.attempt}")
    return Begin(tuple(sorted({*chosen, *carried})), now + timedelta(seconds=spec.round_timeout))


def sample(present: Sequence[str], count: int, seed: str) -> tuple[str, ...]:
    """`count` of the participants, uniformly: those whose seeded hashes are least. Independent of their order."""
    ranked = sorted(present, key=lambda client: hashlib.sha256(f"{seed}:{client}".encode()).digest())
    return tuple(sorted(ranked[:count]))


def enough(spec: RunSpec, round_: RoundView) -> int:
    """The accepted updates that end a round before its deadline: all, or without those it was over-selected by."""
    return min(round_.assigned, spec.clients_per_round or round_.assigned)


def judge(spec: RunSpec, round_: RoundView, now: datetime) -> Aggregate | Abandon | Wait:
    """Whether a COLLECTING round ends."""
    deadline = round_.deadline
    assert deadline is not None, "a collecting round has a deadline"
    quorum = round_.accepted >= spec.min_updates
    if round_.accepted >= enough(spec, round_):
        return Aggregate() if quorum else Abandon(_too_few(spec, round_, "can still come"))
    if now < deadline:
        return Wait(f"Waiting for updates: {round_.accepted} of {enough(spec, round_)} are accepted.", deadline)
    grace = deadline + timedelta(seconds=spec.grace)
    if round_.uploading and now < grace:
        return Wait(f"The deadline has passed; {round_.uploading} updates on their way are waited for.", grace)
    return Aggregate() if quorum else Abandon(_too_few(spec, round_, "came before the deadline"))


def _too_few(spec: RunSpec, round_: RoundView, what: str) -> str:
    return f"Only {round_.accepted} of {round_.assigned} updates {what}; the quorum is {spec.min_updates}."


@dataclass(frozen=True)
class Candidate:
    """An upload that asks to count in a round.

    assigned: its participant has a place in the round, in this attempt or an earlier one (which began from the same adapter).
    announced: it was announced before the round's deadline.
    accepted_sha256: what of this participant counts already.
    """

    sha256: str
    assigned: bool
    announced: bool = False
    accepted_sha256: str | None = None


def admit(
    spec: RunSpec, round_: RoundView, candidate: Candidate, next_number: int, now: datetime
) -> Accept | Repeat | Refuse:
    """Whether an upload may count; `next_number` is the first later round whose inputs are not frozen.

    An update that was accepted keeps its receipt whatever became of the round since.
    """
    accepted = candidate.accepted_sha256
    if accepted is not None:
        if accepted == candidate.sha256:
            return Repeat()
        return Refuse(
            Code.ALREADY_ACCEPTED,
            f"Your update with SHA-256 {accepted} was accepted in this round; wait for the next task.",
        )
    if not candidate.assigned:
        return _unassigned(round_)
    if round_.run_state in OVER:
        return Refuse(Code.ROUND_CLOSED, f"The run is {round_.run_state.lower()}; this update no longer counts.")
    if _in_time(spec, round_, candidate, now):
        return Accept(round_.number)
    if spec.late_updates == "next-round" and next_number <= spec.rounds and round_.run_state != "FAILED":
        return Accept(next_number)
    return Refuse(Code.ROUND_CLOSED, f"Round {round_.number} takes no more uploads; ask for the next task.")


def _unassigned(round_: RoundView) -> Refuse:
    if round_.state == "OPEN":
        return Refuse(
            Code.ROUND_NOT_COLLECTING, f"Round {round_.number} is still gathering participants; ask for a task."
        )
    return Refuse(
        Code.NOT_ASSIGNED,
        f"You have no assignment in round {round_.number}, attempt {round_.attempt}; ask for a task first.",
    )


def _in_time(spec: RunSpec, round_: RoundView, candidate: Candidate, now: datetime) -> bool:
    if round_.state == "OPEN":  # trained for an attempt that was abandoned
        return True
    if round_.state != "COLLECTING" or round_.deadline is None:
        return False
    grace = timedelta(seconds=spec.grace if candidate.announced else 0)
    # Without its quorum the round opens again, and would take it then. So late updates are of rounds that stay closed alone.
    return now < round_.deadline + grace or round_.accepted < spec.min_updates


@dataclass(frozen=True)
class Retry:
    """Aggregate again, not before `at`."""

    at: datetime


@dataclass(frozen=True)
class GiveUp:
    """Too many failures: the round and its run are FAILED."""


def after_failure(failures: int, now: datetime) -> Retry | GiveUp:
    """What follows the `failures`-th failed aggregation of a round: 2, 4, 8, 16 seconds of back-off, then the end."""
    return GiveUp() if failures >= MAX_FAILURES else Retry(now + timedelta(seconds=2**failures))


def after_publication(spec: RunSpec, number: int) -> Literal["next", "complete"]:
    """Whether the run goes on after its round `number` was published."""
    return "complete" if number >= spec.rounds else "next"
