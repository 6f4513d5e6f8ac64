"""Aggregating one module: all that a worker does, beside dense SVDs, randomised SVD, and the floor of matrix products.

All on one thread, side by side in one run. Ours is the whole of a worker's time for a module: the uploads are read from mapped
files, weighed, decomposed, rounded, compared for the figures of the round, and the module is written; the others start from
tensors in memory and end with factors. `dense` is the reference code's way: a float32 sum of dense matrices, then
`torch.linalg.svd`; `dense64` (float64), `numpy`, `scipy` and `sklearn` factorise the same sum. A dense factorisation takes as
long whoever takes part: it is measured in the first round of a shape, and further rounds add their own sum to its seconds
(`dense_measured` tells; their error is not known). `ours` is exact; `ours warm` and `ours cold` may miss the smallest error by
2 %, from the previous round's directions and from those of a new run: they appear where the engine would iterate.

seconds: of CPU, on an idle machine those that pass; the median. ratio_dense: how many times faster than `dense`. figures: their
share of the seconds. floor_seconds: the matrix products of a method of that kind alone (see `floor_operations`) at the float32
rate measured beside it; ratio_floor: how many times slower, the median of the pairs. error_over_optimal: the truncation's error
over the smallest possible. certificate: what the method claimed of it. peak_mib: memory above the start, without mapped files.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from benchmarks.lib.progress import clock
from benchmarks.lib.svd.comparing import Comparison
from benchmarks.lib.svd.lines import Line, heading
from benchmarks.lib.svd.measuring import one_thread
from benchmarks.lib.svd.synthetic_rounds import DATA, MIXED
from flexlora_simulation.experiment import SHARES

SHAPES = ("4096x4096", "4096x11008", "14336x4096")
PARTICIPANTS = (10, 100, 1000)
Task = tuple[str, int, str, str]  # shape, participants, ranks, data


def tasks(asked: argparse.Namespace) -> Iterator[Task]:
    """The rounds to measure, one shape after the other, its smallest first."""
    if asked.quick:
        yield from ((SHAPES[0], participants, MIXED, asked.data or DATA[0]) for participants in (10, 100))
        return
    for shape in asked.shape or SHAPES:
        for participants in asked.participants or PARTICIPANTS:
            for ranks in asked.ranks or (MIXED, *SHARES):
                if ranks == MIXED or participants < 1000 or asked.all or asked.participants:
                    yield shape, participants, ranks, asked.data or DATA[0]
    if not any((asked.shape, asked.participants, asked.ranks, asked.data)):
        yield SHAPES[0], 100, MIXED, "flat"


def measure(asked: argparse.Namespace) -> Iterator[Line]:
    """Every line, as soon as it is measured."""
    libraries, todo, tell = ("dense64", "sklearn") if asked.quick else None, list(tasks(asked)), clock()
    comparison = Comparison(libraries, asked.runs, asked.budget, tell, remeasure=asked.quick)
    with one_thread():  # the comparison has loaded the libraries
        for number, (shape, participants, ranks, data) in enumerate(todo, 1):
            tell(f"round {number} of {len(todo)}")
            d, k = map(int, shape.split("x"))
            yield from comparison.lines(d, k, participants, ranks, data)


def show(lines: Iterator[Line]) -> None:
    """A table, row by row."""
    before = ""
    for line in lines:
        above = heading(line)
        print(line.row() if above == before else f"{above}\n{line.row()}", flush=True)
        before = above


def parser() -> argparse.ArgumentParser:
    """The options."""
    assert __doc__ is not None
    shows = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog="scripts/bench aggregation", description=__doc__, formatter_class=shows)
    made.add_argument("--quick", action="store_true", help=f"{SHAPES[0]}, 10 and 100 participants; no numpy, no scipy")
    made.add_argument("--shape", nargs="+", metavar="DxK", help=f"out x in features; default: {' '.join(SHAPES)}")
    made.add_argument("--participants", nargs="+", type=int, help="default: 10 100 1000")
    made.add_argument(
        "--ranks", nargs="+", choices=(MIXED, *SHARES), help="default: all; 1000 participants: mixed only"
    )
    made.add_argument("--all", action="store_true", help="all rank mixes with 1000 participants too: hours, and 13 GB")
    made.add_argument("--data", choices=DATA, help="default: federation, and flat once")
    made.add_argument("--runs", type=int, default=5, help="of the engine, whose median is taken, after one to warm up")
    made.add_argument(
        "--budget", type=float, help="seconds for an engine's runs; fewer if they take longer (20; quick: 10)"
    )
    made.add_argument("--json", action="store_true", help="a JSON object a line, and nothing else")
    return made


def options(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; exits with a sentence where that does not go together."""
    made = parser()
    asked = made.parse_args(given)
    ignored = [f"--{name}" for name in ("shape", "participants", "ranks", "all") if getattr(asked, name)]
    if asked.quick and ignored:
        made.error(f"--quick has rounds of its own: leave out {' and '.join(ignored)}, or --quick")
    asked.budget = asked.budget or (10.0 if asked.quick else 20.0)
    return asked


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = options(given)
    try:
        if asked.json:
            for line in measure(asked):
                print(line.json(), flush=True)
        else:
            show(measure(asked))
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
