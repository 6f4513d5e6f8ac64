"""One round's aggregation of a whole Llama-3-8B-shaped model: seconds, and memory above the mapped files.

32 layers of q, k, v, o, gate, up and down projections, ten participants of ranks 8 to 64, as real files in a temporary folder
(5 GB): the engine's own `write_aggregate` reads them and writes the next global update. With --participants: one layer and
that many participants of ranks 4 to 64 in bfloat16, to show how memory depends on their number.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.lib.svd.llama_files import spec_of, write_round
from benchmarks.lib.svd.memory import MIB, Peak
from benchmarks.lib.svd.synthetic_rounds import CYCLE
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate

RANKS = (8, 16, 32, 48, 64) * 2
TARGET = {"seconds": 120, "peak_anonymous_mib": 2048}  # on two cores
Figures = dict[str, Any]


def aggregate(work: RoundWork, to: Path) -> Figures:
    """The aggregation in this process."""
    torch.set_num_threads(1)
    with Peak() as peak:
        started = time.perf_counter()
        with to.open("wb") as file:
            modules, _ = write_aggregate(work, file, lambda: None)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_anonymous_mib": peak.mib, "routes": Counter(module.route for module in modules)}


def in_processes(work: RoundWork, to: Path, processes: int) -> Figures:
    """The modules dealt out to processes of one thread each; started before the clock."""
    parts = [
        replace(work, spec=work.spec.model_copy(update={"modules": work.spec.modules[part::processes]}), threads=1)
        for part in range(processes)
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(time.sleep, [1.0] * processes))
        started = time.perf_counter()
        done = list(pool.map(aggregate, parts, [to.with_suffix(f".{part}") for part in range(processes)]))
        seconds = time.perf_counter() - started
    peaks = [found["peak_anonymous_mib"] for found in done]
    routes: Counter[str] = sum((found["routes"] for found in done), Counter())
    return {"seconds": seconds, "peak_anonymous_mib": None if None in peaks else sum(peaks), "routes": routes}


def measure(asked: argparse.Namespace, ranks: Sequence[int], layers: int, dtype: str) -> Iterator[Figures]:
    """One round, by threads and, if asked, by processes."""
    with TemporaryDirectory(prefix="flexlora-bench-", dir=asked.folder) as folder:
        print(f"writing the uploads of {len(ranks)} participants", file=sys.stderr, flush=True)
        work = write_round(spec_of(layers, ranks, dtype, asked.error_bound), ranks, Path(folder), asked.threads)
        to = Path(folder) / "next.safetensors"
        ways: list[tuple[int, int, Callable[[], Figures]]] = [(1, asked.threads, lambda: aggregate(work, to))]
        if asked.processes:
            ways.append((asked.processes, 1, lambda: in_processes(work, to, asked.processes)))
        for processes, threads, way in ways:
            print(f"aggregating: {processes} processes of {threads} threads", file=sys.stderr, flush=True)
            yield {
                "participants": len(ranks),
                "layers": layers,
                "modules": len(work.spec.modules),
                "dtype": dtype,
                "total_rank": sum(ranks),
                "r_max": max(ranks),
                "error_bound": asked.error_bound,
                "uploads_mib": sum(given.announced.size for given in work.inputs) / MIB,
                "processes": processes,
                "threads": threads,
                **way(),
            }


def rounds(asked: argparse.Namespace) -> Iterator[Figures]:
    """The whole model; or one layer for each number of participants."""
    if not asked.participants:
        for found in measure(asked, RANKS, asked.layers, "float32"):
            yield {**found, "target": TARGET if asked.layers == 32 else None}
    for participants in asked.participants or ():
        yield from measure(asked, [CYCLE[i % len(CYCLE)] for i in range(participants)], 1, "bfloat16")


def show(found: Figures) -> str:
    """A round in a line for people."""
    memory = found["peak_anonymous_mib"]
    return (
        f"{found['participants']:5} participants, {found['modules']:3} modules, {found['uploads_mib']:6.0f} MiB of uploads "
        f"({found['dtype']}), {found['processes']} x {found['threads']} threads: {found['seconds']:7.1f} s, "
        f"{'unknown' if memory is None else format(memory, '.0f')} MiB above the start ({dict(found['routes'])})"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    shows = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench llama", description=__doc__, formatter_class=shows)
    parser.add_argument("--threads", type=int, default=2, help="modules side by side (2)")
    parser.add_argument("--processes", type=int, help="also measure this many processes of one thread each")
    parser.add_argument("--layers", type=int, default=32, help="of the model (32)")
    parser.add_argument("--participants", nargs="+", type=int, help="one layer with so many participants each, instead")
    parser.add_argument("--error-bound", type=float, default=1.02, help="of the run (1.02); 1: exact")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's")
    parser.add_argument("--json", action="store_true", help="a JSON object a line, and nothing else")
    asked = parser.parse_args(given)
    for found in rounds(asked):
        print(json.dumps(found) if asked.json else show(found), flush=True)


if __name__ == "__main__":
    main()
