"""The grid: every rule in every cell at every rate on validation problems, then at its own best rate on test problems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lib.progress import Tell
from benchmarks.lib.rules.jobs import Done, Job, run_all
from benchmarks.lib.rules.rule import Rule, chosen
from benchmarks.lib.rules.teacher.problem import KINDS, POPULATIONS, Problem, Split, problem
from benchmarks.lib.rules.teacher.rounds import Outcome, run


@dataclass(frozen=True)
class Plan:
    """What is run. cells: (population, kind). validation, test: how many seeds of each split."""

    rules: tuple[Rule, ...]
    cells: tuple[tuple[str, str], ...]
    rates: tuple[float, ...]
    validation: int
    test: int
    rounds: int


@dataclass(frozen=True)
class Row:
    """One rule in one cell: the rate it was given, and its outcome on each test problem."""

    rule: str
    rate: float
    outcomes: tuple[Outcome, ...]


Cells = dict[tuple[str, str], list[Row]]


def compare(plan: Plan, processes: int, results: Path | None, tell: Tell) -> Cells:
    """A row for each rule in each cell, cell by cell."""

    def done(jobs: Sequence[Job]) -> list[Done]:
        return run_all(jobs, work, processes, results, tell)

    cells: Cells = {}
    for cell in plan.cells:
        rates = tuned(plan, cell, done) if len(plan.rates) > 1 else dict.fromkeys(plan.rules, plan.rates[0])
        tests = [_job(plan, rule, cell, rates[rule], "test") for rule in plan.rules]
        cells[cell] = [_row(found) for found in done(tests)]
    return cells


def tuned(plan: Plan, cell: tuple[str, str], done: Callable[[Sequence[Job]], list[Done]]) -> dict[Rule, float]:
    """The rate of each rule with the highest mean agreement, of the whole global update, on the validation problems.

    The three in the middle are tried first, then what lies beyond the best, as long as that is at an end of those tried.
    """
    middle = len(plan.rates) // 2
    found: dict[Rule, dict[int, float]] = {rule: {} for rule in plan.rules}
    todo = {rule: range(max(0, middle - 1), min(len(plan.rates), middle + 2)) for rule in plan.rules}
    while any(todo.values()):
        jobs = {(rule, n): _job(plan, rule, cell, plan.rates[n], "validation") for rule, ns in todo.items() for n in ns}
        for (rule, n), result in zip(jobs, done(list(jobs.values())), strict=True):
            found[rule][n] = fmean(outcome["whole"] for outcome in result["outcomes"])
        todo = {rule: _beyond(means, len(plan.rates)) for rule, means in found.items()}
    return {rule: plan.rates[max(means, key=means.__getitem__)] for rule, means in found.items()}


def _beyond(means: Mapping[int, float], count: int) -> range:
    """The neighbour of the best that was not tried, if there is one."""
    best = max(means, key=means.__getitem__)
    return next((range(n, n + 1) for n in (best - 1, best + 1) if 0 <= n < count and n not in means), range(0))


def work(job: Job) -> Done:
    """One rule at one rate on the problems of one split, side by side."""
    problems = _problems(job["population"], job["kind"], job["split"], job["seeds"])
    (rule,) = chosen([job["rule"]])
    found = run(rule, POPULATIONS[job["population"]], job["rate"], problems, job["rounds"])
    return {"outcomes": [asdict(each) for each in found]}


@lru_cache(maxsize=2)
def _problems(population: str, kind: str, split: Split, seeds: int) -> tuple[Problem, ...]:
    return tuple(problem(seed, KINDS[kind], len(POPULATIONS[population]), split) for seed in range(seeds))


def _job(plan: Plan, rule: Rule, cell: tuple[str, str], rate: float, split: Split) -> Job:
    population, kind = cell
    seeds = plan.validation if split == "validation" else plan.test
    told = {"population": population, "kind": kind, "rule": rule.name, "rate": rate}
    return {**told, "split": split, "seeds": seeds, "rounds": plan.rounds}


def _row(found: Mapping[str, Any]) -> Row:
    def outcome(each: Mapping[str, Any]) -> Outcome:
        return Outcome(**{**each, "used": {int(rank): value for rank, value in each["used"].items()}})

    return Row(found["rule"], found["rate"], tuple(outcome(each) for each in found["outcomes"]))
