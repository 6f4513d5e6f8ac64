"""One run of a comparison: a method at a learning rate and a seed, from its experiments to its figures by round."""

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from flexlora_simulation import simulate
from flexlora_simulation.engine.same_process import same_process
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.evidence.resumable import Done, Job
from flexlora_simulation.evidence.table import Run
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.catalogue import method
from flexlora_simulation.methods.comparison_file import Comparison
from flexlora_simulation.methods.plan import Plan
from flexlora_simulation.methods.run_plan import run_plan
from flexlora_simulation.population.participants import draw_participants
from flexlora_simulation.results.results import Results
from flexlora_simulation.workloads.contract import Corpus
from flexlora_simulation.workloads.registry import open_workload

Figures = Mapping[str, Mapping[int, tuple[float, ...]]]  # by what it is on, rank, round


def compared_run(comparison: Comparison, folder: Path, job: Job) -> Done:
    """Its `Run` in JSON's types; of a tuning run that fails, `failed` with the reason.

    Raises:
        SimulationError: a measured run failed.
    """
    tuning = job["split"] == "tuning"
    experiment = comparison.experiment_of(job["cell"], job["rate"], job["seed"], tuning)
    place = folder / "runs" / re.sub(r"[^\w.=-]+", "-", "=".join(map(str, job.values())))
    ended = place.with_name(f"{place.name}=ended")
    shutil.rmtree(ended, ignore_errors=True)  # killed before it was written down
    try:
        metric = "loss" if tuning and comparison.tuned_by == "loss" else open_workload(experiment.workload).metric
        run = _run(experiment, method(job["method"])(experiment), place, job, metric)
    except SimulationError as error:
        if tuning:
            return {"failed": str(error)}
        raise SimulationError(f"{', '.join(map(str, job.values()))}: {error}") from error
    place.replace(ended)
    _keep_tables(ended)
    return {name: value for name, value in asdict(run).items() if value is not None and name not in job}


def _run(experiment: Experiment, plan: Plan, place: Path, job: Job, metric: str) -> Run:
    results = run_plan(plan, place, partial(simulate, executor=same_process))
    workload = open_workload(experiment.workload)
    judged = results if plan.alone else results[-1:]
    figures = [_figures(one, metric) for one in judged]
    rounds = sorted(judged[-1].evaluations["round"].unique().tolist())
    before = 0 if plan.alone else sum(len(one.rounds) for one in results[:-1])
    return Run(
        **job,
        rounds=tuple(before + number for number in rounds),
        values=_mean(figures),
        uses=_uses(experiment, plan, workload.corpus()),
        **_costs(results, rounds, plan.alone),
    )


def _figures(results: Results, metric: str) -> Figures:
    """The metric by round; of what participants held out, their mean by examples, as of the largest rank."""
    table = results.evaluations
    table = table[table.metric == metric]
    if table.empty:
        raise SimulationError(f"nothing was measured of {metric!r}: see evaluation.on")
    found = defaultdict[str, dict[int, tuple[float, ...]]](dict)
    for on, rows in table.groupby("on"):
        if on == "heldout":
            weighted = (rows.value * rows.examples).groupby(rows["round"]).sum() / rows.groupby("round").examples.sum()
            found["heldout"][int(rows["rank"].max())] = tuple(weighted.sort_index().tolist())
            continue
        for rank, of_rank in rows.groupby("rank"):
            found[on][int(rank)] = tuple(of_rank.sort_values("round").value.tolist())
    return dict(found)


def _mean(stages: Sequence[Figures]) -> Figures:
    """Of participants that are each alone: the mean of those of a rank; of what they held out, the mean of all."""
    largest = max(rank for figures in stages for ranks in figures.values() for rank in ranks)
    gathered = defaultdict[tuple[str, int], list[tuple[float, ...]]](list)
    for figures in stages:
        for on, ranks in figures.items():
            for rank, values in ranks.items():
                gathered[on, largest if on == "heldout" else rank].append(values)
    found = defaultdict[str, dict[int, tuple[float, ...]]](dict)
    for (on, rank), each in sorted(gathered.items()):
        found[on][rank] = tuple(map(fmean, zip(*each, strict=True)))
    return dict(found)


def _uses(experiment: Experiment, plan: Plan, corpus: Corpus) -> dict[int, int]:
    """The rank that participants use under the method, by the rank that they afford."""
    here = {one.name: one.resource for stage in plan.stages for one in draw_participants(stage, corpus.train)}
    found = dict[int, int]()
    for one in (each for each in draw_participants(experiment, corpus.train) if each.part.seen):
        resource = here.get(one.name) or next(iter(here.values()))  # central training knows one participant only
        used = resource.hold_rank or resource.rank
        found[one.resource.rank] = min(used, found.get(one.resource.rank, used))
    return dict(sorted(found.items()))


def _costs(results: Sequence[Results], rounds: Sequence[int], alone: bool) -> dict[str, Any]:
    """What all trainings had cost by each measured round."""
    costs = {}
    for name, kind in (("bytes_up", int), ("bytes_down", int), ("cpu_seconds", float)):
        before = 0 if alone else sum(one.participants[name].sum() for one in results[:-1])
        tables = [one.participants for one in (results if alone else results[-1:])]
        sums = [before + sum(table[table["round"] <= number][name].sum() for table in tables) for number in rounds]
        costs[name] = tuple(round(kind(each), 1) for each in sums)
    return costs


def _keep_tables(place: Path) -> None:
    """Adapters, uploads and work folders go; they are many times as large as the tables."""
    stages = {table.parent for table in place.rglob("rounds.parquet")}
    for folder in (folder for stage in stages for folder in stage.iterdir() if folder.is_dir()):
        if folder not in stages:
            shutil.rmtree(folder)
