"""Shrinks a failing history: fewer steps first, then less in each."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.chaos.history import History, Interruption, Plan, Step

Fails = Callable[[History], bool]


def shrunk(history: History, fails: Fails) -> History:
    """The smallest history found that still fails."""
    size = max(1, len(history.steps) // 2)
    while size:
        for start in range(len(history.steps) - size, -1, -size):
            fewer = replace(history, steps=history.steps[:start] + history.steps[start + size :])
            if fails(fewer):
                history = fewer
        size //= 2
    for position in range(len(history.steps)):
        for less in _smaller(history.steps[position]):
            simpler = _with(history, position, less)
            if fails(simpler):
                history = simpler
                break
    plain = replace(history, plan=Plan(agents=history.plan.agents, rounds=history.plan.rounds))
    return plain if fails(plain) else history


def _with(history: History, position: int, step: Step) -> History:
    return replace(history, steps=(*history.steps[:position], step, *history.steps[position + 1 :]))


def _smaller(step: Step) -> Iterator[Step]:
    """Simpler ones, the simplest first."""
    if step.lost or step.during:
        yield replace(step, lost="", during=())
    for kept in _one_out(step.during):
        yield replace(step, lost="", during=kept)
        yield replace(step, during=kept)
    if step.lost:
        yield replace(step, lost="")


def _one_out(during: tuple[Interruption, ...]) -> Iterator[tuple[Interruption, ...]]:
    """Each interruption left out, or left to itself."""
    for position, one in enumerate(during):
        yield (*during[:position], *during[position + 1 :])
        for step in _smaller(one.step):
            yield (*during[:position], replace(one, step=step), *during[position + 1 :])
