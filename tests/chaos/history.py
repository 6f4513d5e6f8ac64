"""Histories: the steps and faults of one simulated world, as data that Hypothesis draws and shrinks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from hypothesis.internal.conjecture.data import ConjectureData

T = TypeVar("T")

AGENT = ("go",) * 12 + (
    "replay", "replay", "cut-part", "wrong-offset", "wrong-digest", "conflict", "corrupt", "repeat-commit", "delete",
    "change-rank", "fail",
)  # fmt: skip
AROUND = (
    "tick", "tick", "tick", "work", "work", "work", "clock", "clock", "deadline", "deadline", "garbage", "garbage", "stall",
    "kill", "cut-power", "enroll", "revoke", "pause-resume", "retry", "cancel",
)  # fmt: skip
INSIDE = ("stall",) * 6 + (
    "break",
    "break",
    "beat",
    "kill-me",
    "kill-me",
    "cut-power",
    "cut-power",
)  # what can only happen in the middle of something
STALLS = (1.0, 61.0, 101.0, 121.0)  # seconds for which a process may stand still
RIVALS = (
    "stall",
    "stall",
    "stall",
    "tick",
    "tick",
    "work",
    "go",
    "go",
    "clock",
    "deadline",
    *INSIDE[6:],
)  # inside what moves rounds on
JUMPS = (1.0, 4.0, 61.0, 16.0, 101.0, 61.0, 90_000.0)  # seconds: past back-off, lease, presence, deadline, a day
AROUND_DEADLINE = (-1.0, 0.0, 1.0, 1.0, 1.0, 20.0, 21.0)  # seconds after it: just before, in the grace, after that
LOST = ("",) * 8 + ("request", "response")


@dataclass(frozen=True)
class Step:
    """One thing that happens; `who` and `arg` choose among what there is, `during` lists what happens in its middle."""

    kind: str
    who: int = 0
    arg: int = 0
    lost: str = ""
    during: tuple["Interruption", ...] = ()

    def __str__(self) -> str:
        told = f"{self.kind} {self.who} {self.arg}"
        return told + (f" ({self.lost} lost)" if self.lost else "")


@dataclass(frozen=True)
class Interruption:
    """A step that happens when another one passes its `at`-th point."""

    at: int
    step: Step


@dataclass(frozen=True)
class Plan:
    """The run of a history: its options, and how many agents and processes there are."""

    agents: int = 2
    rounds: int = 2
    coordinators: int = 1
    min_updates: int = 1
    clients_per_round: int | None = None
    over_selection: int = 0
    grace: float = 0.0
    late_updates: str = "discard"
    holds_more: bool = False  # agents hold more than they train, where the rule counts what they change

    def __str__(self) -> str:
        return ", ".join(f"{one.name}={getattr(self, one.name)}" for one in fields(self))


@dataclass(frozen=True)
class History:
    """A plan and what happens."""

    plan: Plan
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Drawing:
    """Draws a history from Hypothesis' choices themselves.

    Strategies would do, but Hypothesis then spends five in six histories on slight changes of the one before: it finds its way
    round by the labels of what was drawn. Here every step has its own.
    """

    choices: ConjectureData

    def history(self, most: int) -> History:
        """A history of up to `most` steps."""
        plan, steps = self._plan(), tuple(self._steps(most))
        return History(replace(plan, holds_more=self._one_of((False, False, True))), steps)

    def _steps(self, most: int) -> Iterator[Step]:
        for number in range(most):
            self.choices.start_span(number + 1)
            more = self.choices.draw_boolean(0.985)
            step = self._step(AGENT + AROUND, 2) if more else None
            self.choices.stop_span()
            if step is None:
                return
            yield step

    def _step(self, kinds: Sequence[str], depth: int) -> Step:
        kind, who, arg = self._one_of(kinds), self._number(0, 3), self._number(0, 3)
        lost = self._one_of(LOST)
        interruptions = self._one_of((0, 0, 1, 1, 2)) if depth else 0
        return Step(kind, who, arg, lost, tuple(self._interruption(kind, depth) for _ in range(interruptions)))

    def _interruption(self, kind: str, depth: int) -> Interruption:
        """Where most of what is interrupted has points, and by what it may not expect."""
        at = self._number(1, 10 if kind == "tick" else 24)
        return Interruption(at, self._step(RIVALS if kind in {"tick", "work"} else INSIDE + AROUND + AGENT, depth - 1))

    def _plan(self) -> Plan:
        return Plan(
            agents=self._number(1, 4),
            rounds=self._one_of((2, 3, 3)),
            coordinators=self._one_of((1, 2, 2)),
            min_updates=self._number(1, 2),
            clients_per_round=self._one_of((None, None, 2)),
            over_selection=self._number(0, 1),
            grace=self._one_of((0.0, 20.0, 20.0)),
            late_updates=self._one_of(("discard", "next-round", "next-round")),
        )

    def _number(self, least: int, most: int) -> int:
        return self.choices.draw_integer(least, most, shrink_towards=least)

    def _one_of(self, values: Sequence[T]) -> T:
        return values[self._number(0, len(values) - 1)]
