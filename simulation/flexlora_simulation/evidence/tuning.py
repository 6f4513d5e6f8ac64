"""Each rule's own learning rate: no rule is judged by a rate that suits another."""

from collections.abc import Callable, Mapping, Sequence

Measure = Callable[[Sequence[tuple[str, float]]], Sequence[float]]  # of each rule at each rate: the higher the better


def tuned(rules: Sequence[str], rates: Sequence[float], measure: Measure) -> dict[str, float]:
    """The rate at which each rule does best; `rates`: ascending; a single one is taken unmeasured.

    The three in the middle are tried first, then what lies beyond the best, as long as that is at an end of those tried.
    """
    if len(rates) == 1:
        return dict.fromkeys(rules, rates[0])
    middle = len(rates) // 2
    found: dict[str, dict[int, float]] = {rule: {} for rule in rules}
    todo = [(rule, n) for rule in rules for n in range(max(0, middle - 1), min(len(rates), middle + 2))]
    while todo:
        for (rule, n), value in zip(todo, measure([(rule, rates[n]) for rule, n in todo]), strict=True):
            found[rule][n] = value
        todo = [(rule, n) for rule, values in found.items() for n in _beyond(values, len(rates))]
    return {rule: rates[_best(values)] for rule, values in found.items()}


def _best(values: Mapping[int, float]) -> int:
    return max(values, key=values.__getitem__)


def _beyond(values: Mapping[int, float], count: int) -> list[int]:
    """The neighbour of the best that was not tried, if there is one."""
    best = _best(values)
    return [n for n in (best - 1, best + 1) if 0 <= n < count and n not in values]
