"""The rules on BANKING77 with a frozen head: options, the runs, the table."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.lib.federation.federation import BenchmarkError
from benchmarks.lib.progress import Tell
from benchmarks.lib.rules.banking77.federation import ROUNDS, Federation, Split, Task, federation, load, run
from benchmarks.lib.rules.rule import BUCKET, ORACLE, PAPER, RESIDUAL, chosen
from flexlora_simulation.evidence.bootstrap import paired
from flexlora_simulation.evidence.resumable import Done, Job, runner
from flexlora_simulation.evidence.tuning import tuned
from flexlora_simulation.workloads.banking77 import packaged_model

RULES = (BUCKET, PAPER, RESIDUAL, "leak 0.1", "view", "view, leak 0.1", ORACLE)
RATES, SEEDS, VALIDATION = (0.00125, 0.0025, 0.005, 0.01, 0.02), 3, 1000  # the seed of the validation federation
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of BANKING77 alone."""
    group = parser.add_argument_group("with --banking77")
    group.add_argument("--data", type=Path, help="folder with train.csv and test.csv")
    group.add_argument("--model", type=Path, help="a BERT, a folder; None: MiniLM from its package")
    group.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the frozen matrix products")


def compare(asked: argparse.Namespace, tell: Tell) -> tuple[str, dict[str, Any]]:
    """The table, and what it says as JSON. Raises: BenchmarkError, ValueError."""
    if asked.data is None:
        raise BenchmarkError("--banking77 needs --data, the folder with train.csv and test.csv")
    names = [rule.name for rule in chosen(asked.rules or RULES)]
    rates, seeds, rounds = asked.rates or RATES, asked.seeds or SEEDS, asked.rounds or ROUNDS
    work = partial(one_run, str(asked.data), str(asked.model or packaged_model()), asked.dtype)
    tried: list[Done] = []
    with runner(work, asked.processes, asked.results, tell) as run_jobs:

        def accuracy(pairs: Sequence[tuple[str, float]]) -> list[float]:
            tried.extend(
                found := run_jobs([_job(name, rate, "validation", VALIDATION, rounds) for name, rate in pairs])
            )
            return [float(one["whole"]) for one in found]

        best = tuned(dict.fromkeys(names, rates), accuracy)
        done = run_jobs([_job(name, best[name], "test", seed, rounds) for seed in range(seeds) for name in names])
    about = f"{seeds} seeds, each rule at the rate that is best on one other; 95 % intervals in brackets"
    return f"{about}\n\n{table(names, done)}", {"seeds": seeds, "rates": rates, "tried": tried, "runs": done}


def one_run(data: str, model: str, dtype: str, job: Job) -> Done:
    """All rounds of one rule at one rate and seed."""
    task = _task(data, model, dtype)
    given = _federation(data, model, dtype, job["seed"], job["split"])
    return asdict(run(task, chosen([job["rule"]])[0], job["rate"], given, job["rounds"]))


def table(names: Sequence[str], done: Sequence[Mapping[str, Any]]) -> str:
    """A row of each rule: accuracies in %; the way from bucket to oracle where both are there."""
    heads = (
        "rule",
        "rate",
        "global update",
        f"less `{PAPER}`",
        "bucket to oracle",
        "rank 1 uses",
        f"less `{PAPER}`",
        "slice of rank 1",
        "tail energy",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " + "| ---: " * 8 + "|"]
    of = {name: [one for one in done if one["rule"] == name] for name in names}

    def values(name: str, what: str) -> list[float]:
        return [one[what] for one in of[name]]

    for name in names:
        means = {what: fmean(values(name, what)) for what in ("whole", "used", "slice", "tail")}
        less = {what: str(paired(values(name, what), values(PAPER, what))) if PAPER in of else "" for what in means}
        way = ""
        if BUCKET in of and ORACLE in of:
            low, high = (fmean(values(end, "whole")) for end in (BUCKET, ORACLE))
            way = f"{(means['whole'] - low) / (high - low):.0%}" if high != low else ""
        cells = [f"`{name}`", f"{of[name][0]['rate']:g}", f"{means['whole']:.1f}", less["whole"], way]
        cells += [f"{means['used']:.1f}", less["used"], f"{means['slice']:.1f}", f"{means['tail']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _job(rule: str, rate: float, split: Split, seed: int, rounds: int) -> Job:
    return {"rule": rule, "rate": rate, "split": split, "seed": seed, "rounds": rounds}


@lru_cache(maxsize=1)
def _task(data: str, model: str, dtype: str) -> Task:
    return load(Path(data), Path(model), DTYPES[dtype])


@lru_cache(maxsize=1)
def _federation(data: str, model: str, dtype: str, seed: int, split: Split) -> Federation:
    return federation(_task(data, model, dtype), seed, split)
