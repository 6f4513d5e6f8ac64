"""What is learned under each aggregation rule when ranks differ: a problem with a known answer, and BANKING77.

The teacher's problem: twenty participants of ranks 2 to 16, eight a round, thirty rounds, with many examples and nearly exact
labels (`rich`) or few and noisy ones (`noisy`); each rule at the learning rate that is best for it on validation problems of
their own, then on test problems that all rules share. `--banking77`: questions of a bank's customers, MiniLM with a frozen
head, thirty participants of rank 1 and 8. All in this process, by the server's own strategies. See docs/rules.md.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.federation.federation import BenchmarkError
from benchmarks.lib.progress import Tell, clock
from benchmarks.lib.rules.banking77 import federation, frozen_head
from benchmarks.lib.rules.rule import chosen
from benchmarks.lib.rules.teacher import comparing, rounds, tables
from benchmarks.lib.rules.teacher.comparing import POPULATIONS
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.evidence.resumable import runner
from flexlora_simulation.workloads.teacher_problem import KINDS

RATES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
CELLS = tuple((population, kind) for population in POPULATIONS for kind in KINDS)
QUICK_CELLS, QUICK_RATES = (("two-tier", "rich"), ("low-heavy", "noisy")), (0.004, 0.008)


def teacher(asked: argparse.Namespace, tell: Tell) -> tuple[str, dict[str, Any]]:
    """The tables, and what they say as JSON. Raises: BenchmarkError, ValueError."""
    plan = comparing.Plan(
        rules=chosen(asked.rules),
        cells=tuple(_cell(name) for name in asked.cells) or (QUICK_CELLS if asked.quick else CELLS),
        rates=tuple(asked.rates) or (QUICK_RATES if asked.quick else RATES),
        validation=2 if asked.quick else 3,
        test=asked.seeds or (3 if asked.quick else 10),
        rounds=asked.rounds or rounds.ROUNDS,
    )
    with runner(comparing.work, asked.processes, asked.results, tell) as run_jobs:
        found = comparing.compare(plan, run_jobs)
    about = (
        f"{plan.test} seeds, each rule at the rate that is best on {plan.validation} others; 95 % intervals in brackets"
    )
    told = [{"cell": ",".join(cell), **asdict(row)} for cell, rows in found.items() for row in rows]
    return f"{about}\n\n{tables.markdown(found)}", {"seeds": plan.test, "rates": plan.rates, "rows": told}


def _cell(name: str) -> tuple[str, str]:
    population, _, kind = name.partition(",")
    if (population, kind) not in CELLS:
        raise BenchmarkError(f"there is no cell {name!r}: choose from {', '.join(map(','.join, CELLS))}")
    return population, kind


def main(arguments: Sequence[str] | None = None) -> None:
    shows = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench rules", description=__doc__, formatter_class=shows)
    parser.add_argument(
        "--quick", action="store_true", help="two cells, two rates, three seeds: at most three minutes on two cores"
    )
    parser.add_argument("--rules", nargs="+", default=[], help="by their names in the tables; all if not given")
    parser.add_argument("--cells", nargs="+", default=[], help="population,kind; all if not given")
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="learning rates that each rule chooses from")
    parser.add_argument("--seeds", type=int, help="how many are tested")
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"{rounds.ROUNDS} of the teacher's problem, {federation.ROUNDS} of BANKING77 if not given",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of one thread each")
    parser.add_argument(
        "--results", type=Path, help="JSON lines: runs that are in it are not run again, others are added"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    parser.add_argument("--banking77", action="store_true", help="BANKING77 instead; --data says where it is")
    frozen_head.add_options(parser)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        text, told = (frozen_head.compare if asked.banking77 else teacher)(asked, clock())
    except (BenchmarkError, SimulationError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if not asked.json:
        print(text)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
