"""One round's aggregation of a whole Llama-3-shaped model: seconds, and memory above the mapped files.

All q, k, v, o, gate, up and down projections, participants of ranks 8 to 64, as real files in a temporary folder: the engine's
own `write_aggregate` reads them and writes the next global update. --model 8b: 32 layers, ten participants, float32, 5 GB of
files; 70b: 80 layers, sixteen participants, bfloat16, 18 GB. With --participants: one layer and that many participants of
ranks 4 to 64 in bfloat16, to show how memory depends on their number.
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

from benchmarks.lib.svd.llama_files import MODELS, spec_of, write_round
from benchmarks.lib.svd.memory import MIB, Peak
from benchmarks.lib.svd.synthetic_rounds import CYCLE
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate

RANKS = (8, 16, 32, 48, 64)
ROUNDS: dict[str, tuple[int, str]] = {
    "8b": (10, "float32"),
    "70b": (16, "bfloat16"),
}  # participants, and what they upload
TARGETS = {  # on two cores
    "8b": {"seconds": 120, "peak_anonymous_mib": 2048},
    "70b": {"seconds": 300, "peak_anonymous_mib": 4096},
}
Figures = dict[str, Any]


def aggregate(work: RoundWork, to: Path) -> Figures:
    """The aggregation in this process."""
    torch.set_num_threads(1)
    with Peak() as peak:
        started, cpu_before = time.perf_counter(), time.process_time()
        with to.open("wb") as file:
            modules, _ = write_aggregate(work, file, lambda: None)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_before
    routes = Counter(module.route for module in modules)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_anonymous_mib": peak.mib, "routes": routes}


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
    cpu = sum(found["cpu_seconds"] for found in done)
    memory = None if None in peaks else sum(peaks)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_anonymous_mib": memory, "routes": routes}


def measure(asked: argparse.Namespace, ranks: Sequence[int], layers: int, dtype: str) -> Iterator[Figures]:
    """One round, by threads and, if asked, by processes."""
    with TemporaryDirectory(prefix="flexlora-bench-", dir=asked.folder) as folder:
        print(f"writing the uploads of {len(ranks)} participants", file=sys.stderr, flush=True)
        model = replace(MODELS[asked.model], layers=layers)
        work = write_round(spec_of(model, ranks, dtype, asked.error_bound), ranks, Path(folder), asked.threads)
        to = Path(folder) / "next.safetensors"
        ways: list[tuple[int, int, Callable[[], Figures]]] = [(1, asked.threads, lambda: aggregate(work, to))]
        if asked.processes:
            ways.append((asked.processes, 1, lambda: in_processes(work, to, asked.processes)))
        for processes, threads, way in ways:
            print(f"aggregating: {processes} processes of {threads} threads", file=sys.stderr, flush=True)
            yield {
                "model": asked.model,
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
        participants, dtype = ROUNDS[asked.model]
        layers = asked.layers or MODELS[asked.model].layers
        for found in measure(asked, [RANKS[i % len(RANKS)] for i in range(participants)], layers, dtype):
            yield {**found, "target": TARGETS[asked.model] if layers == MODELS[asked.model].layers else None}
    for participants in asked.participants or ():
        yield from measure(asked, [CYCLE[i % len(CYCLE)] for i in range(participants)], 1, "bfloat16")


def show(found: Figures) -> str:
    """A round in a line for people."""
    memory = found["peak_anonymous_mib"]
    return (
        f"{found['participants']:5} participants, {found['modules']:3} modules, {found['uploads_mib']:6.0f} MiB of uploads "
        f"({found['dtype']}), {found['processes']} x {found['threads']} threads: {found['seconds']:7.1f} s "
        f"({found['cpu_seconds']:.1f} s of CPU), "
        f"{'unknown' if memory is None else format(memory, '.0f')} MiB above the start ({dict(found['routes'])})"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    shows = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench llama", description=__doc__, formatter_class=shows)
    parser.add_argument("--model", choices=MODELS, default="8b", help="shapes of the layers (8b)")
    parser.add_argument("--threads", type=int, default=2, help="modules side by side (2)")
    parser.add_argument("--processes", type=int, help="also measure this many processes of one thread each")
    parser.add_argument("--layers", type=int, help="of the model, if not all (32 or 80)")
    parser.add_argument("--participants", nargs="+", type=int, help="one layer with so many participants each, instead")
    parser.add_argument("--error-bound", type=float, default=1.02, help="of the run (1.02); 1: exact")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's")
    parser.add_argument("--json", action="store_true", help="a JSON object a line, and nothing else")
    asked = parser.parse_args(given)
    for found in rounds(asked):
        print(json.dumps(found) if asked.json else show(found), flush=True)


if __name__ == "__main__":
    main()
