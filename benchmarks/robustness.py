"""What robust filters save of a round with three hostile participants of twenty, by attack and by filter.

Ranks 4 to 32, 256 x 320. Everyone takes a gradient step on both factors of what it was served: the gradient is the same
for all, plus noise of its own. After a round of honest ones only, the hostile send S + c D instead of S + D, or S + a
random matrix as long as D. Error: the distance of the global update from the one the honest alone would have made,
relative to the honest ones' mean change; 1 is a round lost. In the row `nobody` all twenty are honest.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from benchmarks.lib.svd.hostile import ATTACKS, DTYPE, HOSTILE, RANKS, Task, attacked, decaying, task, trained
from benchmarks.lib.svd.matrices import dense
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.filters.cosine import Cosine
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound, round_norm
from flexlora_server.aggregation.filters.reweight import Shares, apply_filters
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.aggregation.filters.split import split
from flexlora_server.aggregation.geometry.update_geometry import Geometry, module_geometry
from flexlora_server.aggregation.strategies import registry as registered

STRATEGIES = ("flexlora", "flexlora-residual")
NOBODY = "nobody"
Errors = dict[str, dict[str, dict[str, float]]]  # by strategy, attack and filter


def filters(calm_norm: float) -> Mapping[str, tuple[Rule, ...]]:
    """The filters compared, by name; the fixed bound is what an operator reads off the round before."""
    return {
        "none": (),
        "norm-clip, fixed": (FixedBound(1.5 * calm_norm),),
        "norm-clip, median": (RunningBound(1.5, 5),),
        "multi-krum": (MultiKrum(0.2),),
        "geometric-median": (GeometricMedian(),),
        "cosine": (Cosine(0.0),),
        "cosine, norm-clip": (Cosine(0.0), RunningBound(1.5, 5)),
    }


@dataclass(frozen=True)
class Calm:
    """Where the attacks begin: after one round of honest participants."""

    strategy: str
    before: GlobalFactors
    previous: GlobalFactors
    norm: float  # the median of that round's changes

    def geometry(self, updates: Sequence[Update]) -> Geometry:
        return module_geometry(updates, self.previous, self.before, DTYPE, fresh=False)

    def result(self, updates: Sequence[Update], shares: Shares) -> Tensor:
        """The global update after these, as a dense matrix."""
        if not shares.any_upload_counts:
            return dense(self.previous)
        parts = split(updates, shares, self.previous, DTYPE, fresh=False)
        return dense(registered.strategy(self.strategy).aggregate(parts, self.previous, DTYPE).factors)


def calm(strategy: str, given: Task, noise: float, generator: torch.Generator) -> Calm:
    """The first round, on a global update of decaying spectrum."""
    before = decaying(generator, max(RANKS), 0.9)
    updates = trained(given, before, noise, generator)
    norm = round_norm(module_geometry(updates, before, None, DTYPE, fresh=False).norms)
    return Calm(strategy, before, registered.strategy(strategy).aggregate(updates, before, DTYPE).factors, norm)


def errors(strategy: str, seed: int, noise: float) -> dict[str, dict[str, float]]:
    """One seed's errors of one strategy, by attack and filter."""
    generator = torch.Generator().manual_seed(seed)
    given = task(generator)
    start = calm(strategy, given, noise, generator)
    honest = trained(given, start.previous, noise, generator)
    found = {NOBODY: against(start, honest, honest)}
    rest = renormalised([update for index, update in enumerate(honest) if index not in given.hostile])
    for name, attack in ATTACKS.items():
        found[name] = against(start, attacked(honest, given, start.previous, attack, generator), rest)
    return found


def against(start: Calm, updates: Sequence[Update], honest: Sequence[Update]) -> dict[str, float]:
    """Each filter's error on these updates against the honest ones alone, unfiltered."""
    weights, geometry = [update.weight for update in updates], start.geometry(updates)
    wanted = start.result(honest, apply_filters([update.weight for update in honest], start.geometry(honest), (), ()))
    learned = mean_norm(honest, start.geometry(honest))
    return {
        name: float((start.result(updates, apply_filters(weights, geometry, rules, [start.norm])) - wanted).norm())
        / learned
        for name, rules in filters(start.norm).items()
    }


def mean_norm(updates: Sequence[Update], geometry: Geometry) -> float:
    """|sum of p_i D_i|."""
    p = torch.tensor([update.weight for update in updates], dtype=torch.float64)
    return math.sqrt(float(p @ geometry.inner @ p))


def renormalised(updates: Sequence[Update]) -> list[Update]:
    total = math.fsum(update.weight for update in updates)
    return [replace(update, weight=update.weight / total) for update in updates]


def medians(seeds: int, noise: float) -> Errors:
    """The median over the seeds."""
    found: Errors = {}
    for strategy in STRATEGIES:
        runs = [errors(strategy, seed, noise) for seed in range(seeds)]
        found[strategy] = {
            attack: {name: median(run[attack][name] for run in runs) for name in row} for attack, row in runs[0].items()
        }
    return found


def markdown(found: Errors) -> str:
    """One table: a row for each strategy and attack, a column for each filter."""
    names = tuple(filters(1.0))
    lines = [f"| strategy | attack | {' | '.join(names)} |", "| --- " * 2 + "| ---: " * len(names) + "|"]
    for strategy, rows in found.items():
        for attack, row in rows.items():
            lines.append(f"| `{strategy}` | {attack} | {' | '.join(f'{row[name]:.2f}' for name in names)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    shows = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench robustness", description=__doc__, formatter_class=shows)
    parser.add_argument("--seeds", type=int, default=7, help="of which the median is shown")
    parser.add_argument(
        "--noise", type=float, default=1.0, help="norm of each one's own gradient, the shared one's is 1"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = medians(asked.seeds, asked.noise)
    if not asked.json:
        print(markdown(found))
    about = {"participants": len(RANKS), "hostile": HOSTILE, "seeds": asked.seeds, "noise": asked.noise}
    print(json.dumps({**about, "errors": found}))


if __name__ == "__main__":
    main()
