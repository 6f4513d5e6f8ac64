"""Rank collapse: what idle rounds leave of the global update, and how close each strategy comes to a planted matrix.

Idle: participants of rank 4, 8 and 16 with shares .25, .25 and .5 send back what they were served, from other factors of
the same product. Learning: benchmarks.lib.svd.synthetic_task, with exact labels and with noisy ones; the median over the seeds of
|D - W*| / |W*|. The figure shows the learning rate at which `flexlora` ends lowest with exact labels.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.lib.plotting import Panel, draw
from benchmarks.lib.svd.hostile import decaying
from benchmarks.lib.svd.synthetic_task import EXAMPLES, SCALING, Planted, floor, learned, planted
from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy

STRATEGIES = ("flexlora", "flexlora-residual")
SHARES = {4: 0.25, 8: 0.25, 16: 0.5}
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03)
SHOWN = 0.01
NOISE = 0.5
Learned = dict[str, dict[float, dict[str, list[float]]]]  # errors by labels, learning rate, strategy and round


@dataclass(frozen=True)
class Idle:
    """By round: |D|^2 relative to what it was, and the share of it above the smallest rank."""

    energy: list[float]
    above: list[float]


def idle_round(
    name: str, factors: GlobalFactors, shares: Mapping[int, float], generator: torch.Generator, dtype: torch.dtype
) -> GlobalFactors:
    """The next global update of a round in which nobody learns; `shares`: the weight of each rank."""
    updates = [turned(factors, rank, share, generator, dtype) for rank, share in shares.items()]
    return strategy(name).aggregate(updates, factors, dtype).factors


def turned(factors: GlobalFactors, rank: int, share: float, generator: torch.Generator, dtype: torch.dtype) -> Update:
    """What was served, as B Q and Q^T A for a random rotation Q: the same product, but nothing to recognise it by."""
    A, B = slice_factors(factors, rank, SCALING, dtype)
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
    return Update(Q.mT @ A.double(), B.double() @ Q, SCALING, share, SCALING)


def idle(name: str, rounds: int) -> Idle:
    """`rounds` rounds in which nobody learns, from a global update whose singular values fall as 0.95^j."""
    generator = torch.Generator().manual_seed(0)
    factors, energy = decaying(generator, max(SHARES), 0.95), []
    for number in range(rounds + 1):
        if number:
            factors = idle_round(name, factors, SHARES, generator, torch.float32)
        energy.append(factors.B.double().square().sum(0))  # of each direction: B = U Sigma
    whole = [float(each.sum()) for each in energy]
    above = [float(each[min(SHARES) :].sum()) for each in energy]
    return Idle([e / whole[0] for e in whole], [part / e for part, e in zip(above, whole, strict=True)])


def learning(seeds: int, rounds: int, examples: int) -> Learned:
    """The medians over the seeds, for every learning rate, with exact and with noisy labels."""
    found: Learned = {"exact": {}, "noisy": {}}
    for labels, noise in (("exact", 0.0), ("noisy", NOISE)):
        problems = [planted(seed, noise=noise, examples=examples) for seed in range(seeds)]
        for rate in LEARNING_RATES:
            found[labels][rate] = {name: _errors(name, problems, rounds, rate) for name in STRATEGIES}
    return found


def _errors(name: str, problems: Sequence[Planted], rounds: int, rate: float) -> list[float]:
    runs = [[1.0, *learned(name, problem, rounds, rate)] for problem in problems]
    return [median(errors) for errors in zip(*runs, strict=True)]


def markdown(idles: Mapping[str, Idle], found: Learned) -> str:
    """Two tables: what some idle rounds leave; the errors after the last round, and the lowest on the way."""
    heads = " | ".join(f"`{name}`: energy | above rank {min(SHARES)}" for name in STRATEGIES)
    lines = [f"| idle rounds | {heads} |", "| ---: " * 5 + "|"]
    for number in range(0, len(idles[STRATEGIES[0]].energy), 5):
        cells = [f"{idles[name].energy[number]:.3f} | {idles[name].above[number]:.3f}" for name in STRATEGIES]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    heads = " | ".join(f"`{name}`: last | lowest" for name in STRATEGIES)
    lines += ["", f"| labels | learning rate | {heads} |", "| --- " + "| ---: " * 5 + "|"]
    for labels, rates in found.items():
        for rate, errors in rates.items():
            cells = [f"{errors[name][-1]:.3f} | {min(errors[name]):.3f}" for name in STRATEGIES]
            lines.append(f"| {labels} | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def panels(idles: Mapping[str, Idle], found: Learned) -> list[Panel]:
    """The figure: nobody learns; learning from exact labels; from noisy ones."""
    energies = {name: idles[name].energy for name in STRATEGIES}
    exact, noisy = (_by_round(found[labels][SHOWN]) for labels in ("exact", "noisy"))
    return [
        Panel("round", "energy left", _by_round(energies), "nobody learns"),
        Panel("round", "error", exact, "learning, exact labels", {"everyone's optimum, averaged": floor()}),
        Panel("round", "error", noisy, "learning, noisy labels"),
    ]


def _by_round(values: Mapping[str, Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    return {name: list(enumerate(each)) for name, each in values.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    shows = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench rank-collapse", description=__doc__, formatter_class=shows)
    parser.add_argument("--seeds", type=int, default=5, help="of which the median is shown")
    parser.add_argument("--rounds", type=int, default=40, help="of learning; half as many idle ones")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of each participant")
    parser.add_argument("-o", "--output", type=Path, help="write the figure to this SVG file")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    idles = {name: idle(name, asked.rounds // 2) for name in STRATEGIES}
    found = learning(asked.seeds, asked.rounds, asked.examples)
    if asked.output:
        draw(panels(idles, found), asked.output)
    if not asked.json:
        print(markdown(idles, found))
    about = {"seeds": asked.seeds, "examples": asked.examples, "noise": NOISE, "floor": floor()}
    print(json.dumps({**about, "idle": {name: asdict(idles[name]) for name in STRATEGIES}, "learning": found}))


if __name__ == "__main__":
    main()
