"""Each rule's own learning rate: no rule is judged by a rate that suits another."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Rule = TypeVar("Rule", bound=Hashable)  # its name, or what else tells it from the others


def tuned(
    rates: Mapping[Rule, Sequence[float]], measure: Callable[[Sequence[tuple[Rule, float]]], Sequence[float]]
) -> dict[Rule, float]:
    """The rate at which each rule does best; `rates`: of each rule, ascending; a single one is taken unmeasured.

    measure: of each rule at each rate, the higher the better.

    The three in the middle are tried first, then what lies beyond the best, as long as that is at an end of those tried.
    """
    found: dict[Rule, dict[int, float]] = {rule: {} for rule, own in rates.items() if len(own) > 1}
    todo = [(rule, n) for rule in found for n in _middle(len(rates[rule]))]
    while todo:
        for (rule, n), value in zip(todo, measure([(rule, rates[rule][n]) for rule, n in todo]), strict=True):
            found[rule][n] = value
        todo = [(rule, n) for rule, values in found.items() for n in _beyond(values, len(rates[rule]))]
    return {rule: own[_best(found[rule])] if rule in found else own[0] for rule, own in rates.items()}


def _middle(count: int) -> range:
    return range(max(0, count // 2 - 1), min(count, count // 2 + 2))


def _best(values: Mapping[int, float]) -> int:
    return max(values, key=values.__getitem__)


def _beyond(values: Mapping[int, float], count: int) -> list[int]:
    """The neighbour of the best that was not tried, if there is one."""
    best = _best(values)
    return [n for n in (best - 1, best + 1) if 0 <= n < count and n not in values]
