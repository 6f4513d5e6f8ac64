"""Kills as scheduled while a run goes on, and restarts at once."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.system.endurance.place import Place
from tests.system.endurance.processes import Program
from tests.system.endurance.schedule import Stroke


@dataclass
class Tally:
    """What has been killed so far, by kind and by moment; `missed` moments had passed when they were looked for."""

    kinds: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    cold: int = 0
    missed: int = 0

    @property
    def kills(self) -> int:
        return self.kinds.total()

    def told(self) -> dict[str, Any]:
        """Everything, for a report."""
        counts = {"by_victim": dict(self.kinds), "by_moment": dict(self.moments)}
        return {"kills": self.kills, **counts, "cold_restarts": self.cold, "missed_moments": self.missed}


@dataclass
class Killer:
    """Does the strokes of round after round; `pause` waits out their delays, `told` hears of every kill."""

    place: Place
    pause: Callable[[float], None] = time.sleep
    told: Callable[[Tally, int], None] = lambda tally, number: None
    tally: Tally = field(default_factory=Tally)
    _struck: tuple[int, int] = (0, 0)  # the round and the lease token under which a worker was killed last

    def run(self, rounds: Sequence[Sequence[Stroke]]) -> None:
        """Kill through all rounds, then wait until everybody has ended well."""
        for number, strokes in enumerate(rounds, 1):
            self._round(number, strokes)
        self.place.until_agents_end()

    def _round(self, number: int, strokes: Sequence[Stroke]) -> None:
        self.place.until(lambda: self.place.round(number), f"round {number} opens")
        for stroke in strokes:
            if stroke.moment != "any":
                self.place.open_gate(number)
            self._strike(stroke, number)
        self.place.open_gate(number)
        self.place.until(lambda: number in self.place.published(), f"round {number} is published")

    def _strike(self, stroke: Stroke, number: int) -> None:
        victim = self._victim(stroke)
        self.place.until(lambda: _shows_life(victim), f"{victim.name} is up")
        self.place.until(lambda: self._come(stroke, number), f"round {number}: {stroke.moment}")
        self.pause(stroke.delay)
        self.place.check_running()
        self._remember(stroke, number)
        victim.kill()
        victim.start(cold=stroke.cold)
        self.told(self.tally, number)

    def _victim(self, stroke: Stroke) -> Program:
        by_kind = {"coordinator": self.place.coordinator, "worker": self.place.worker}
        return by_kind.get(stroke.kind) or self.place.agents[stroke.agent]

    def _come(self, stroke: Stroke, number: int) -> bool:
        """Whether the stroke's moment is there, or has passed."""
        if stroke.moment == "any":
            return True
        if stroke.moment == "part":
            return self.place.arriving(number)
        return number in self.place.published() or (stroke.moment == "aggregating" and self._at_work(number))

    def _at_work(self, number: int) -> bool:
        """Whether a worker that lives aggregates the round."""
        round_ = self.place.round(number)
        assert round_ is not None
        working = round_.state == "AGGREGATING" and round_.lease_until is not None
        return working and (number, round_.lease_token) > self._struck

    def _remember(self, stroke: Stroke, number: int) -> None:
        round_ = self.place.round(number)
        assert round_ is not None
        if stroke.kind == "worker":
            self._struck = (number, round_.lease_token)
        passed = {"part": round_.state != "COLLECTING", "aggregating": round_.state != "AGGREGATING"}
        self.tally.missed += passed.get(stroke.moment, False)
        self.tally.kinds[stroke.kind] += 1
        self.tally.moments[stroke.moment] += 1
        self.tally.cold += stroke.cold


def _shows_life(program: Program) -> bool:
    """Whether it has got as far as saying something since its start; a worker says nothing."""
    return program.command[1] == "worker" or program.output.stat().st_size > 0
