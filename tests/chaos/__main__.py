"""Plays many histories on one or two processes: `scripts/chaos`."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.chaos.batches import Batch, play_batch
from tests.chaos.plants import PLANTS
from tests.chaos.simulate import Tally
from tests.chaos.sites import cluster

BATCH = 40  # histories of one seed


def _arguments() -> Namespace:
    parser = ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first batch of 40 histories; each further one adds 1"
    )
    parser.add_argument("--steps", type=int, default=40, help="most steps of a history")
    parser.add_argument("--histories", type=int, default=500)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="plant this defect, which must be found")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    return parser.parse_args()


def _batches(asked: Namespace, socket: Path | None) -> Iterator[Batch]:
    for number, first in enumerate(range(0, asked.histories, BATCH)):
        count = min(BATCH, asked.histories - first)
        yield Batch(asked.seed + number, asked.steps, count, asked.plant, socket)


def main() -> int:
    """Play, and say what came of it: 1 where something was violated."""
    asked, started, total = _arguments(), time.perf_counter(), Tally()
    with cluster(asked.database) as socket, ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
        for told in pool.map(play_batch, _batches(asked, socket)):
            if isinstance(told, str):
                pool.shutdown(cancel_futures=True)
                print(told)
                return 1
            total += told
            _report(asked, total, time.perf_counter() - started)
    return 0


def _report(asked: Namespace, total: Tally, seconds: float) -> None:
    print(
        f"{total.histories} of {asked.histories} histories on {asked.database}: {total.steps} steps, {total.calls} calls, "
        f"{total.published} rounds published, {total.receipts} receipts, no violation; "
        f"{seconds:.0f} s, {total.histories / seconds:.1f} histories a second",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
