"""Cost curves of aggregating one module, drawn as an SVG: seconds by participants, by rank, and by the matrix' size.

The engine's exact answer, the one certified to 2 % and started from the previous round, and the dense reference, each on one
thread. Where a curve of the engine bends, its cost model takes another route.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.lib import plotting
from benchmarks.lib.svd.measuring import timed
from benchmarks.lib.svd.svd_baselines import BOUND, DENSE, ours, torch_sum
from benchmarks.lib.svd.synthetic_rounds import CYCLE, Round, make

METHODS = {"dense": "dense float32 SVD", "ours": "exact", "ours warm": "certified to 2 %, warm"}
AXES = {
    "participants": ("participants (2048 x 2048, ranks 4 to 64)", (10, 20, 50, 100, 200, 500, 1000)),
    "r_max": ("largest rank (2048 x 2048, 50 participants)", (8, 16, 32, 64, 128, 256)),
    "size": ("rows and columns (50 participants, ranks 4 to 64)", (512, 1024, 2048, 4096)),
}


@dataclass(frozen=True)
class Point:
    """One measurement."""

    axis: str
    at: int
    method: str
    route: str
    seconds: float


def points(scale: float) -> Iterator[Point]:
    """Every point of every curve; `scale` shrinks the matrices, for trying."""
    for axis, (_, values) in AXES.items():
        for at in values:
            given, r_max = round_of(axis, at, scale), at if axis == "r_max" else max(CYCLE)
            print(f"{axis} {at}", file=sys.stderr, flush=True)
            for method in METHODS:
                route, seconds = measured(method, given, r_max)
                yield Point(axis, at, method, route, seconds)


def round_of(axis: str, at: int, scale: float) -> Round:
    """The round of a point: everyone's rank is a share of the largest."""
    n = int((at if axis == "size" else 2048) * scale)
    r_max = at if axis == "r_max" else max(CYCLE)
    people = at if axis == "participants" else 50
    ranks = [max(1, CYCLE[i % len(CYCLE)] * r_max // max(CYCLE)) for i in range(people)]
    return make(n, n, ranks, r_max, "federation")


def measured(method: str, given: Round, r_max: int) -> tuple[str, float]:
    """The route and the median seconds."""
    if method == "dense":
        found, took = timed(lambda: DENSE.factorise(torch_sum(given.stack), r_max))
        return found.route, took
    bound, start = (BOUND, given.V) if method == "ours warm" else (1.0, None)
    route, seconds = ours(given, bound, start).route, list[float]()  # the first warms up
    while len(seconds) < 5 and sum(seconds) < 5.0:
        seconds.append(timed(lambda: ours(given, bound, start))[1])
    return route, statistics.median(seconds)


def draw(found: Sequence[Point], to: Path) -> None:
    """The curves side by side."""
    plotting.draw([_panel(found, axis, label, values) for axis, (label, values) in AXES.items()], to)


def _panel(found: Sequence[Point], axis: str, label: str, values: Sequence[int]) -> plotting.Panel:
    curves = {
        name: [(point.at, point.seconds) for point in found if (point.axis, point.method) == (axis, method)]
        for method, name in METHODS.items()
    }
    return plotting.Panel(label, "seconds, one thread", curves, ticks=values)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and draw."""
    shows = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench curves", description=__doc__, formatter_class=shows)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the SVG to write")
    parser.add_argument("--scale", type=float, default=1.0, help="of the matrices: less than 1 to try it out")
    parser.add_argument("--json", action="store_true", help="print the points too, a JSON object a line")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    found = list(points(asked.scale))
    if asked.json:
        for point in found:
            print(json.dumps(asdict(point)))
    draw(found, asked.output)


if __name__ == "__main__":
    main()
