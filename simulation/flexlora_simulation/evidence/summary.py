"""What a comparison says: means, paired differences to the baseline with their intervals, and what a level cost.

Differences are seed by seed: a seed is the same partition, the same resources and the same sampling for all methods. An interval
is a 95 % bootstrap over the seeds (`bootstrap`); with one seed it is the difference itself.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flexlora_simulation.evidence.bootstrap import Interval, paired
from flexlora_simulation.evidence.table import Evidence, Run

CLAIM = 5  # seeds; fewer decide nothing
BUCKET, ORACLE = "bucket", "oracle"


@dataclass(frozen=True)
class Figure:
    """The mean over the seeds; less the baseline, None for the baseline itself and where no seed is common."""

    mean: float
    less: Interval | None


@dataclass(frozen=True)
class Result:
    """One method after the last round.

    whole: of the global update at its largest rank. used: the mean of what participants use, `by_rank` for those who afford
    each rank. way: of `used`, the share of the way from `bucket` to `oracle`; None where these are not there.
    """

    method: str
    rate: float
    seeds: int
    whole: Figure
    used: Figure
    by_rank: Mapping[int, Figure]
    way: float | None


@dataclass(frozen=True)
class Cost:
    """What one method needed until participants' mean reached a level: means over the seeds that reached it."""

    method: str
    reached: int  # seeds
    seeds: int
    rounds: float
    bytes_up: float
    bytes_down: float
    cpu_seconds: float


def methods(evidence: Evidence, cell: str) -> list[str]:
    """Those that were measured, in the file's order."""
    return list(dict.fromkeys(run.method for run in _measured(evidence, cell)))


def measured_on(evidence: Evidence, cell: str) -> list[str]:
    """What all of a cell's runs were measured on."""
    runs = _measured(evidence, cell)
    return [on for on in ("unseen", "test", "heldout") if runs and all(on in run.values for run in runs)]


def results(evidence: Evidence, cell: str, on: str) -> list[Result]:
    """A row for each method."""
    population = evidence.population[cell]
    by_method = {
        name: [run for run in _measured(evidence, cell) if run.method == name] for name in methods(evidence, cell)
    }
    base = by_method.get(evidence.baseline, [])

    def figure(runs: Sequence[Run], rank: int | None, whole: bool = False) -> Figure:
        def last(run: Run) -> float:
            by_round = (
                run.whole(on) if whole else mean_used(run, on, population) if rank is None else run.used(on, rank)
            )
            return by_round[-1]

        return Figure(fmean(map(last, runs)), _less(runs, base, last))

    ends = [fmean(mean_used(run, on, population)[-1] for run in by_method.get(end, [])) for end in _ends(by_method)]
    found = []
    for name, runs in by_method.items():
        used = figure(runs, None)
        way = None if len(ends) < 2 or ends[0] == ends[1] else (used.mean - ends[0]) / (ends[1] - ends[0])
        by_rank = {rank: figure(runs, rank) for rank in sorted(population)}
        seeds = len({run.seed for run in runs})
        found.append(Result(name, runs[0].rate, seeds, figure(runs, None, whole=True), used, by_rank, way))
    return found


def at_an_end(evidence: Evidence, cell: str) -> list[str]:
    """The methods that did best at the smallest or the largest rate that was tried for them: a better one may lie beyond."""
    tried = defaultdict[str, set[float]](set)
    for run in evidence.runs:
        if (run.split, run.cell) == ("tuning", cell):
            tried[run.method].add(run.rate)
    chosen = {run.method: run.rate for run in _measured(evidence, cell) if len(tried[run.method]) > 1}
    return [name for name, rate in chosen.items() if rate in (min(tried[name]), max(tried[name]))]


def mean_used(run: Run, on: str, population: Mapping[int, int]) -> tuple[float, ...]:
    """By round, the mean over all participants of what they use."""
    count = sum(population.values())
    each = [[n / count * value for value in run.used(on, rank)] for rank, n in population.items()]
    return tuple(map(sum, zip(*each, strict=True)))


def costs(evidence: Evidence, cell: str, on: str) -> tuple[float, list[Cost]]:
    """The level, the lowest at which any method ends on average, and what it cost; no rows where costs are not known."""
    runs = _measured(evidence, cell)
    if not runs or any(run.bytes_up is None for run in runs):
        return 0.0, []
    last = {result.method: result.used.mean for result in results(evidence, cell, on)}
    level = min(last.values()) if evidence.higher_is_better else max(last.values())
    return level, [_cost(evidence, [run for run in runs if run.method == name], on, level) for name in last]


def _cost(evidence: Evidence, runs: Sequence[Run], on: str, level: float) -> Cost:
    sign, reached = (1 if evidence.higher_is_better else -1), list[tuple[float, float, float, float]]()
    for run in runs:
        by_round = mean_used(run, on, evidence.population[run.cell])
        n = next((n for n, value in enumerate(by_round) if sign * value >= sign * level), None)
        if n is not None and run.bytes_up and run.bytes_down and run.cpu_seconds:
            reached.append((run.rounds[n], run.bytes_up[n], run.bytes_down[n], run.cpu_seconds[n]))
    means = tuple(map(fmean, zip(*reached, strict=True))) or (0.0,) * 4
    return Cost(runs[0].method, len(reached), len(runs), *means)


def _measured(evidence: Evidence, cell: str) -> list[Run]:
    return [run for run in evidence.runs if run.split == "measured" and run.cell == cell]


def _ends(there: Mapping[str, object]) -> list[str]:
    return [end for end in (BUCKET, ORACLE) if end in there]


def _less(runs: Sequence[Run], base: Sequence[Run], last: Callable[[Run], float]) -> Interval | None:
    others = {run.seed: run for run in base}
    pairs = [(last(run), last(others[run.seed])) for run in runs if run.seed in others]
    if not pairs or runs[0].method == base[0].method:
        return None
    return paired(*zip(*pairs, strict=True))
