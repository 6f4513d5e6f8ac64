"""The grid: every rule in every cell at every rate on validation problems, then at its own best rate on test problems."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from benchmarks.lib.rules.rule import Rule, chosen
from benchmarks.lib.rules.teacher.rounds import Outcome, run
from flexlora_simulation.evidence.resumable import Done, Job, Run
from flexlora_simulation.evidence.tuning import tuned
from flexlora_simulation.workloads.teacher_problem import KINDS, Problem, Split, problem

POPULATIONS: Mapping[str, tuple[int, ...]] = {
    "low-heavy": (2,) * 14 + (4,) * 3 + (8,) * 2 + (16,),
    "two-tier": (2,) * 10 + (16,) * 10,
    "even": (2,) * 5 + (4,) * 5 + (8,) * 5 + (16,) * 5,
}


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


def compare(plan: Plan, run_jobs: Run) -> Cells:
    """A row for each rule in each cell, cell by cell. A rate is best by the mean agreement of the whole global update.

    run_jobs: of `work`.
    """
    cells: Cells = {}
    for cell in plan.cells:

        def agreement(tried: Sequence[tuple[str, float]], cell: tuple[str, str] = cell) -> list[float]:
            found = run_jobs([_job(plan, rule, rate, cell, "validation") for rule, rate in tried])
            return [fmean(outcome["whole"] for outcome in one["outcomes"]) for one in found]

        rates = tuned({rule.name: plan.rates for rule in plan.rules}, agreement)
        cells[cell] = [_row(found) for found in run_jobs([_job(plan, *best, cell, "test") for best in rates.items()])]
    return cells


def work(job: Job) -> Done:
    """One rule at one rate on the problems of one split, side by side."""
    problems = _problems(job["population"], job["kind"], job["split"], job["seeds"])
    (rule,) = chosen([job["rule"]])
    found = run(rule, POPULATIONS[job["population"]], job["rate"], problems, job["rounds"])
    return {"outcomes": [asdict(each) for each in found]}


@lru_cache(maxsize=2)
def _problems(population: str, kind: str, split: Split, seeds: int) -> tuple[Problem, ...]:
    return tuple(problem(seed, KINDS[kind], len(POPULATIONS[population]), split) for seed in range(seeds))


def _job(plan: Plan, rule: str, rate: float, cell: tuple[str, str], split: Split) -> Job:
    population, kind = cell
    seeds = plan.validation if split == "validation" else plan.test
    told = {"population": population, "kind": kind, "rule": rule, "rate": rate}
    return {**told, "split": split, "seeds": seeds, "rounds": plan.rounds}


def _row(found: Mapping[str, Any]) -> Row:
    def outcome(each: Mapping[str, Any]) -> Outcome:
        return Outcome(**{**each, "used": {int(rank): value for rank, value in each["used"].items()}})

    return Row(found["rule"], found["rate"], tuple(outcome(each) for each in found["outcomes"]))
