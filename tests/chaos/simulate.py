"""Plays histories that Hypothesis draws, each in a fresh world, to their end."""

import math
from contextlib import nullcontext
from dataclasses import astuple, dataclass

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.reporting import with_reporter

from tests.chaos.history import Drawing, History
from tests.chaos.machine import Violation
from tests.chaos.plants import Plant
from tests.chaos.seams import installed
from tests.chaos.shrinking import shrunk
from tests.chaos.site import Site
from tests.chaos.steps import perform
from tests.chaos.world import World

ENDED = "[the faults end]"
PATIENCE = 60  # turns that everybody gets at the end
PART = 8  # histories that Hypothesis is asked for at a time: of ten or more it would make the first tenth tiny
CALLS = 6  # of an agent in a turn


class Violated(AssertionError):
    """A history in which something happened that must not; `early`: while there were faults."""

    def __init__(self, told: str, history: History, *, early: bool) -> None:
        super().__init__(told)
        self.history, self.early = history, early


def play(here: Site, history: History, plant: Plant = nullcontext, *, to_the_end: bool = True) -> World:
    """Play a history to its end, with a defect planted into the product where one is given.

    Without `to_the_end`, only while there are faults.

    Raises:
        Violated: with the trace.
    """
    world = World(here, history.plan)
    here.machine.perform = lambda step: perform(world, step)
    try:
        with installed(here.machine, here.ids, here.loops.time, world.oracle.committed) as defects, plant():
            world.oracle.defects = defects.found
            world.begin()
            for step in history.steps:
                perform(world, step)
                world.oracle.check()
                world.steps += 1
            if to_the_end:
                finish(world)
    except Violation as violation:
        here.machine.frames = []
        told = "\n".join([f"run: {history.plan}", *world.trace, f"VIOLATION: {violation}"])
        raise Violated(told, history, early=ENDED not in world.trace) from violation
    return world


def finish(world: World) -> None:
    """No more faults: the run must complete, unless it was cancelled, and everything must have been counted."""
    world.note(ENDED)
    for turn in range(PATIENCE):
        state = world.state()
        if state in {"COMPLETED", "CANCELLED"}:
            break
        _turn(world, state, turn)
        world.oracle.check()
    if world.state() == "COMPLETED":
        world.oracle.account()
    elif not world.cancelled:
        raise Violation(f"the run does not end: {world.must('GET', '/v1/runs/run')['status']}")


def _turn(world: World, state: str, turn: int) -> None:
    if state == "PAUSED":
        world.must("POST", "/v1/runs/run/resume")
    if state == "FAILED":
        world.retry()
    while sum(not agent.revoked for agent in world.agents) < 2:
        world.enroll()
    for agent in world.agents:
        for _ in range(CALLS):
            if not agent.revoked and not agent.over:
                agent.go(world.call)
            if agent.task is None:
                break
    world.tick(0)
    if "AGGREGATING" in world.oracle.states.values():
        world.work(0)
    world.clock.advance(70 if turn % 10 == 9 else 2)


@dataclass
class Tally:
    """What was played."""

    histories: int = 0
    steps: int = 0
    published: int = 0
    receipts: int = 0
    calls: int = 0

    def add(self, world: World) -> None:
        """Count one more world."""
        self.histories += 1
        self.steps += world.steps
        self.published += world.oracle.published
        self.receipts += len(world.oracle.receipts)
        self.calls += world.calls

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def play_many(
    here: Site, seed: int, steps: int, count: int, *, plant: Plant = nullcontext, shrink: bool = True
) -> Tally:
    """Play `count` histories of up to `steps` steps, rounded up to whole parts.

    Raises:
        Violated: of the smallest history that Hypothesis finds, with its trace.
    """
    tally = Tally()
    with with_reporter(lambda text: None):
        for part in range(math.ceil(count / PART)):
            _play_part(here, tally, (seed << 20) + part, steps, min(PART, count), plant, shrink)
    return tally


def _play_part(here: Site, tally: Tally, seed: int, steps: int, count: int, plant: Plant, shrink: bool) -> None:
    @seeded(seed)
    @settings(
        max_examples=count + 1, database=None, deadline=None, report_multiple_bugs=False, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(st.data())
    def one(data: st.DataObject) -> None:
        history = Drawing(data.conjecture_data).history(steps)
        if history.steps:  # the first of every part is empty
            tally.add(play(here, history, plant))

    try:
        one()
    except Violated as violated:
        raise _smallest(here, violated, plant) if shrink else violated from None


def _smallest(here: Site, violated: Violated, plant: Plant) -> Violated:
    """The violation of a history as small as can be found."""
    least = violated

    def fails(history: History) -> bool:
        nonlocal least
        try:
            play(here, history, plant, to_the_end=not violated.early)
        except Violated as again:
            least = again
            return True
        return False

    shrunk(violated.history, fails)
    return least
