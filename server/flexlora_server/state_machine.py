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

A rollback abandons the round under way and publishes an older adapter as its next attempt, PUBLISHED from the beginning; after
the last round, as one more round.

What moves it: the operator starts, pauses, resumes, cancels, retries and rolls back; `gather` and `judge` decide whenever an
upload was accepted or time has passed; the worker publishes, and its failures go through `after_failure`.
"""

import hashlib
from collections.abc import Mapping, Sequence
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
Action = Literal["start", "pause", "resume", "cancel", "retry", "rollback"]
RUN_MOVES: dict[tuple[RunState, Action], RunState] = {
    ("DRAFT", "start"): "RUNNING",
    ("RUNNING", "pause"): "PAUSED",
    ("PAUSED", "resume"): "RUNNING",
    ("DRAFT", "cancel"): "CANCELLED",
    ("RUNNING", "cancel"): "CANCELLED",
    ("PAUSED", "cancel"): "CANCELLED",
    ("FAILED", "cancel"): "CANCELLED",
    ("FAILED", "retry"): "RUNNING",
    ("RUNNING", "rollback"): "RUNNING",
    ("PAUSED", "rollback"): "PAUSED",
    ("FAILED", "rollback"): "RUNNING",
    ("COMPLETED", "rollback"): "COMPLETED",
}
FINAL_STATES: frozenset[RunState] = frozenset({"COMPLETED", "CANCELLED"})  # a FAILED run waits for its operator


@dataclass(frozen=True)
class Wait:
    """Nothing to do yet; `why` is one sentence for people, `until` when time alone may change it."""

    why: str
    until: datetime | None = None


@dataclass(frozen=True)
class Begin:
    """Fix these participants and this deadline."""

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
    """The upload may not be accepted; the problem's code and sentence."""

    code: Code
    detail: str


@dataclass(frozen=True)
class Accept:
    """The upload counts from now on, in the aggregation of round `counts_in`: a late one in a later round's."""

    counts_in: int


@dataclass(frozen=True)
class Repeat:
    """The same bytes were accepted before: the same receipt again."""


@dataclass(frozen=True)
class RoundView:
    """The fields of a round that decisions depend on.

    A client that was revoked, or failed in this round, before its update was accepted counts in neither `assigned` nor
    `declared`. One that failed comes back with a new declaration.
    """

    run_state: RunState
    number: int
    attempt: int
    state: RoundState
    opened_at: datetime
    deadline: datetime | None
    assigned: int = 0
    accepted: int = 0
    uploading: int = 0  # open uploads that were announced before the deadline
    declared: int = 0
    failed: int = 0  # participants that failed in this attempt or an earlier one, and have not come back
    failures: int = 0  # of its aggregation
    reason: str | None = None  # of its last failure
    leased: bool = False  # a worker aggregates it
    lease_until: datetime | None = None  # when the lease ends, or the next attempt may begin


def next_run_state(state: RunState, action: Action) -> RunState | None:
    """The state `action` leads to, or None where the state does not allow it."""
    return RUN_MOVES.get((state, action))


def gather(
    spec: RunSpec, round_: RoundView, present: Mapping[str, str], now: datetime, carried: Sequence[str] = ()
) -> Begin | Wait:
    """Whether an OPEN round begins, with whom, and until when.

    `present` are the participants seen recently, by id, and their names, each another one; `carried` those whose updates an
    abandoned attempt handed on: they take part anyway.
    """
    if round_.run_state != "RUNNING":
        return Wait("The run is paused; resume it to go on.")
    available = (
        len({*present, *carried}) if carried else len(present)
    )  # without reading thousands of ids while they wait
    target = (
        spec.clients_per_round + spec.over_selection
        if spec.clients_per_round
        else max(spec.min_clients, round_.declared)
    )
    gather_until = round_.opened_at + timedelta(seconds=spec.gather_timeout)
    if available < spec.min_clients:
        return Wait(
            f"Waiting for participants: {available} of at least {spec.min_clients} are present{_without_failed(round_)}."
        )
    if available < target and now < gather_until:
        return Wait(
            f"Waiting for participants: {available} of {target} are present{_without_failed(round_)}.", gather_until
        )
    carried_ones = frozenset(carried)
    uncarried = {client: name for client, name in present.items() if client not in carried_ones}
    free_places = max(0, target - len(carried_ones)) if spec.clients_per_round else len(uncarried)
    selected = sample(uncarried, free_places, f"{spec.seed}:{round_.number}:{round_.attempt}")
    return Begin(tuple(sorted({*selected, *carried_ones})), now + timedelta(seconds=spec.round_timeout))


def sample(present: Mapping[str, str], count: int, seed: str) -> tuple[str, ...]:
    """`count` of the participants, uniformly: those whose names' seeded hashes are least.

    Neither their order nor their ids matter, which a coordinator draws at random.
    """
    ranked = sorted(present, key=lambda client: hashlib.sha256(f"{seed}:{present[client]}".encode()).digest())
    return tuple(sorted(ranked[:count]))


def updates_needed(spec: RunSpec, round_: RoundView) -> int:
    """The accepted updates that end a round before its deadline: all, or without those it was over-selected by."""
    return min(round_.assigned, spec.clients_per_round or round_.assigned)


def judge(spec: RunSpec, round_: RoundView, now: datetime) -> Aggregate | Abandon | Wait:
    """Whether a COLLECTING round ends."""
    deadline = round_.deadline
    assert deadline is not None, "a collecting round has a deadline"
    if round_.assigned < spec.min_updates:  # the next attempt takes over what is accepted, on its way or being trained
        failed = _without_failed(round_)
        return Abandon(f"Only {round_.assigned} updates can still come{failed}; the quorum is {spec.min_updates}.")
    quorum = round_.accepted >= spec.min_updates
    needed = updates_needed(spec, round_)
    if quorum and round_.accepted >= needed:
        return Aggregate()
    if now < deadline:
        failed = _without_failed(round_)
        return Wait(f"Waiting for updates: {round_.accepted} of {needed} are accepted{failed}.", deadline)
    grace = deadline + timedelta(seconds=spec.grace)
    if round_.uploading and now < grace:
        return Wait(f"The deadline has passed; {round_.uploading} updates on their way are waited for.", grace)
    if quorum:
        return Aggregate()
    came = f"Only {round_.accepted} of {round_.assigned} updates came before the deadline"
    return Abandon(f"{came}{_without_failed(round_)}; the quorum is {spec.min_updates}.")


def _without_failed(round_: RoundView) -> str:
    """The part of a sentence that says how many participants failed; empty where none did."""
    if not round_.failed:
        return ""
    return f", {round_.failed} participant{'s' if round_.failed > 1 else ''} failed"


@dataclass(frozen=True)
class Candidate:
    """An upload that is to be accepted in a round.

    assigned: its participant has a place in the round, in this attempt or an earlier one (which began from the same adapter).
    announced: it was announced before the round's deadline.
    accepted_sha256: what of this participant counts already.
    rolled_back: the run was rolled back since: what was trained for the round began from an adapter that was taken back, maybe.
    """

    sha256: str
    assigned: bool
    announced: bool = False
    accepted_sha256: str | None = None
    rolled_back: bool = False


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
    if round_.run_state in FINAL_STATES:
        return Refuse(Code.ROUND_CLOSED, f"The run is {round_.run_state.lower()}; this update no longer counts.")
    if candidate.rolled_back:
        return Refuse(
            Code.ROUND_CLOSED,
            f"The run was rolled back since round {round_.number} began; this update no longer counts, ask for the next task.",
        )
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


def counts_as_failed(round_: RoundView, *, assigned: bool, accepted: bool) -> bool | Refuse:
    """Whether a participant that reports a failure is no longer waited for in this round, until it declares anew.

    `assigned`: it has a place in the attempt that it names; `accepted`: its update counts already, and wins.
    """
    if not assigned:
        return _unassigned(round_)
    return round_.state in {"OPEN", "COLLECTING"} and round_.run_state not in FINAL_STATES and not accepted


def _in_time(spec: RunSpec, round_: RoundView, candidate: Candidate, now: datetime) -> bool:
    if round_.state == "OPEN":  # trained for an attempt that was abandoned
        return True
    if round_.state != "COLLECTING" or round_.deadline is None:
        return False
    grace = timedelta(seconds=spec.grace if candidate.announced else 0)
    # A round without its quorum opens again and would accept the update then: only rounds that stay closed have late updates.
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


@dataclass(frozen=True)
class Rollback:
    """How a run goes back: the round under way to abandon, if any, and the round and attempt that publish the old adapter."""

    abandons: bool
    number: int
    attempt: int


def roll_back(round_: RoundView) -> Rollback:
    """How a run goes back whose newest round is this one; the run's state allows it, and an adapter is published."""
    if round_.state == "PUBLISHED":  # the run is complete
        return Rollback(False, round_.number + 1, 1)
    return Rollback(True, round_.number, round_.attempt + 1)


def after_publication(spec: RunSpec, number: int) -> Literal["next", "complete"]:
    """Whether the run goes on after its round `number` was published."""
    return "complete" if number >= spec.rounds else "next"
