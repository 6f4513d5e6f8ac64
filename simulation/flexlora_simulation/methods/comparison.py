"""Comparisons: one experiment under several methods, each at its own best learning rate, on the same seeds.

A method's rate is the one that does best on what the participants who train have held out, in runs of seeds of their own; neither
the test examples nor the unseen participants are looked at for that. Then every method runs on the same seeds: the same
partition, the same resources, the same sampling. What was run is kept in the comparison's folder, and is not run again.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from flexlora_client.files import make_folder, write_whole
from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.evidence.resumable import Done, Job, runner
from flexlora_simulation.evidence.table import Evidence, Run, run_of, software, write
from flexlora_simulation.evidence.tuning import tuned
from flexlora_simulation.methods.compared_run import compared_run
from flexlora_simulation.methods.comparison_file import Comparison
from flexlora_simulation.population.participants import draw_participants
from flexlora_simulation.workloads.registry import open_workload

Compared = tuple[str, str]  # a cell and a method
# fields that may be others when a comparison goes on in its folder
MAY_CHANGE = {"title", "about", "methods", "rates", "rates_of", "seeds", "tuning_seeds", "baseline"}


def compare(
    comparison: Comparison, folder: Path, *, processes: int = 1, tell: Callable[[str], None] = lambda told: None
) -> Evidence:
    """Run the comparison in `folder`, or what is left of it there; its table, which also lies in `folder`/NAME.json.

    processes: each runs whole experiments, one after another, on one thread. tell: takes a line for each that ended.

    Raises:
        SimulationError: it cannot be run as it is, or a run failed; a failure at a rate that is only tried loses.
    """
    _claim(folder, comparison)
    tried = list[Done]()
    with runner(partial(compared_run, comparison, folder), processes, folder / "runs.jsonl", tell) as run_jobs:

        def measure(pairs: Sequence[tuple[Compared, float]]) -> list[float]:
            seeds = comparison.tuning_seeds
            done = run_jobs([_job(*one, rate, seed, "tuning") for one, rate in pairs for seed in seeds])
            tried.extend(done)
            each = [done[n : n + len(seeds)] for n in range(0, len(done), len(seeds))]
            return [_worth(comparison, one) for one in each]

        compared = [(cell, name) for cell in comparison.cells for name in comparison.methods]
        best = tuned({one: comparison.rates_for(one[1]) for one in compared}, measure)
        _refuse_failed(best, tried)
        jobs = [
            _job(cell, name, best[cell, name], seed, "measured")
            for cell in comparison.cells
            for seed in comparison.seeds
            for name in comparison.methods
        ]
        measured = run_jobs(jobs)
    runs = [run_of(one) for one in (*tried, *measured) if "failed" not in one]
    evidence = _evidence(comparison, runs)
    write(evidence, folder / f"{comparison.name}.json")
    return evidence


def _job(cell: str, name: str, rate: float, seed: int, split: str) -> Job:
    return {"cell": cell, "method": name, "rate": rate, "seed": seed, "split": split}


def _worth(comparison: Comparison, tried: Sequence[Done]) -> float:
    """The higher the better; of a rate at which a run failed, or learned nothing that is a number, the lowest there is."""
    if any("failed" in one for one in tried):
        return -math.inf
    value = fmean(run_of(one).whole("heldout")[-1] for one in tried)
    if math.isnan(value):
        return -math.inf
    workload = open_workload(comparison.experiment_of(next(iter(comparison.cells))).workload)
    return value if comparison.tuned_by == "metric" and workload.higher_is_better else -value


def _refuse_failed(best: dict[Compared, float], tried: Sequence[Done]) -> None:
    for one in tried:
        if "failed" in one and best[one["cell"], one["method"]] == one["rate"]:
            raise SimulationError(f"{one['method']!r} failed at every learning rate: {one['failed']}")


def _evidence(comparison: Comparison, runs: Sequence[Run]) -> Evidence:
    population = {}
    for cell in comparison.cells:
        experiment = comparison.experiment_of(cell)
        workload = open_workload(experiment.workload)
        everybody = draw_participants(experiment, workload.corpus().train)
        ranks = [one.resource.rank for one in everybody if one.part.seen]
        population[cell] = {rank: ranks.count(rank) for rank in sorted(set(ranks))}
    return Evidence(
        name=comparison.name,
        title=comparison.title or comparison.name,
        about=comparison.about,
        metric=workload.metric,
        higher_is_better=workload.higher_is_better,
        percent=workload.metric != "loss",
        baseline=comparison.baseline,
        population=population,
        definition=comparison.told(),
        software=software(),
        runs=tuple(runs),
    )


def _claim(folder: Path, comparison: Comparison) -> None:
    """Nothing of another experiment is taken for this one's."""
    path, given = make_folder(folder) / "comparison.json", json.loads(comparison.model_dump_json())
    if path.exists():
        held = json.loads(path.read_bytes())
        for name in sorted(set(given) - MAY_CHANGE):
            if held.get(name) != given[name]:
                raise ExperimentError(f"{folder} holds a comparison of another {name}; give this one another folder")
    write_whole(path, json.dumps(given, indent=1).encode())
