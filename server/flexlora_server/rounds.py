"""The state machine of runs and rounds. Pure: no database, no files, and the clock is an argument.

    Run:    DRAFT -> RUNNING <-> PAUSED -> COMPLETED | CANCELLED | FAILED
    Round:  OPEN -> COLLECTING -> AGGREGATING -> PUBLISHED
              |         |              |
              +---------+--> ABANDONED +--> FAILED (fifth failed aggregation)

Who moves it: the operator starts, pauses, resumes and cancels runs; `gather` and `judge` are asked whenever something arrived or
time has passed; the worker publishes, and its failures go through `after_failure`.
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
    }
)
Action = Literal["start", "pause", "resume", "cancel"]
RUN_MOVES: dict[tuple[RunState, Action], RunState] = {
    ("DRAFT", "start"): "RUNNING",
    ("RUNNING", "pause"): "PAUSED",
    ("PAUSED", "resume"): "RUNNING",
    ("DRAFT", "cancel"): "CANCELLED",
    ("RUNNING", "cancel"): "CANCELLED",
    ("PAUSED", "cancel"): "CANCELLED",
}
OVER: frozenset[RunState] = frozenset({"COMPLETED", "CANCELLED", "FAILED"})


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
    """An upload that counts from now on."""


@dataclass(frozen=True)
class Repeat:
    """The same bytes were accepted before: the same receipt again."""


@dataclass(frozen=True)
class RoundView:
    """What the machine needs to know of a round."""

    run_state: RunState
    number: int
    attempt: int
    state: RoundState
    opened_at: datetime
    deadline: datetime | None
    assigned: int = 0
    accepted: int = 0
    declared: int = 0  # participants of the run that were not revoked


def next_run_state(state: RunState, action: Action) -> RunState | None:
    """The state `action` leads to, or None where the state does not allow it."""
    return RUN_MOVES.get((state, action))


def gather(spec: RunSpec, round_: RoundView, present: Sequence[str], now: datetime) -> Begin | Wait:
    """Whether an OPEN round begins, with whom, and until when; `present` are the participants seen recently."""
    if round_.run_state != "RUNNING":
        return Wait("The run is paused; resume it to go on.")
    wanted = spec.clients_per_round or max(spec.min_clients, round_.declared)
    patience = round_.opened_at + timedelta(seconds=spec.gather_timeout)
    if len(present) < spec.min_clients:
        return Wait(f"Waiting for participants: {len(present)} of at least {spec.min_clients} are present.")
    if len(present) < wanted and now < patience:
        return Wait(f"Waiting for participants: {len(present)} of {wanted} are present.", patience)
    chosen = sample(present, spec.clients_per_round or len(present), f"{spec.seed}:{round_.number}:{round_.attempt}")
    return Begin(chosen, now + timedelta(seconds=spec.round_timeout))


def sample(present: Sequence[str], count: int, seed: str) -> tuple[str, ...]:
    """`count` of the participants, uniformly: those whose seeded hashes are least. Independent of their order."""
    ranked = sorted(present, key=lambda client: hashlib.sha256(f"{seed}:{client}".encode()).digest())
    return tuple(sorted(ranked[:count]))


def judge(spec: RunSpec, round_: RoundView, now: datetime) -> Aggregate | Abandon | Wait:
    """Whether a COLLECTING round ends."""
    deadline = round_.deadline
    assert deadline is not None, "a collecting round has a deadline"
    if round_.accepted == round_.assigned:
        return Aggregate()
    if now < deadline:
        return Wait(f"Waiting for updates: {round_.accepted} of {round_.assigned} are accepted.", deadline)
    if round_.accepted >= spec.min_updates:
        return Aggregate()
    return Abandon(
        f"Only {round_.accepted} of {round_.assigned} updates came before the deadline; the quorum is {spec.min_updates}."
    )


def admit(
    round_: RoundView, assigned: bool, sha256: str, accepted_sha256: str | None, now: datetime
) -> Accept | Repeat | Refuse:
    """Whether an upload of these bytes may count in the round; `accepted_sha256` is what counts already.

    An update that was accepted keeps its receipt whatever became of the round since.
    """
    if accepted_sha256 is not None:
        if accepted_sha256 == sha256:
            return Repeat()
        return Refuse(
            Code.ALREADY_ACCEPTED,
            f"Your update with SHA-256 {accepted_sha256} was accepted in this round; wait for the next task.",
        )
    if round_.state == "OPEN":  # nobody is assigned yet
        return Refuse(
            Code.ROUND_NOT_COLLECTING, f"Round {round_.number} is still gathering participants; ask for a task."
        )
    if not assigned:
        return Refuse(
            Code.NOT_ASSIGNED,
            f"You have no assignment in round {round_.number}, attempt {round_.attempt}; ask for a task first.",
        )
    if round_.run_state in OVER:
        return Refuse(Code.ROUND_CLOSED, f"The run is {round_.run_state.lower()}; this update no longer counts.")
    if round_.state != "COLLECTING" or (round_.deadline is not None and now >= round_.deadline):
        return Refuse(Code.ROUND_CLOSED, f"Round {round_.number} takes no more uploads; ask for the next task.")
    return Accept()


def waiting_for(spec: RunSpec, round_: RoundView, present: int, now: datetime) -> str:
    """One sentence for people: what the round waits for."""
    match round_.state:
        case "OPEN":
            decision = gather(spec, round_, [str(n) for n in range(present)], now)
            return decision.why if isinstance(decision, Wait) else "About to begin."
        case "COLLECTING":
            judged = judge(spec, round_, now)
            until = f" The deadline is {round_.deadline:%Y-%m-%d %H:%M:%S} UTC." if round_.deadline else ""
            return judged.why + until if isinstance(judged, Wait) else "About to aggregate."
        case "AGGREGATING":
            return "Waiting for a worker to aggregate the updates."
        case _:
            return "Nothing."


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
