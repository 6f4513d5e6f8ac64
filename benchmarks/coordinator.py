"""The coordinator under load: uploads and downloads beside the raw disk and a naive server, memory, latency, idle agents.

All in one run and in turn, each in processes of its own, on the disk of the temporary folder (TMPDIR).

raw: SHA-256, write and fsync of the same bytes in one process by the simplest code. naive: a FastAPI route that reads the body
into memory and writes a file, without hashing or syncing it; `naive, fsync` does both before it answers. ours: the whole
protocol from the announcement to the receipt, in parts of 8 MiB with their digests, the tensors inspected. flwr: a message of
that size from a ServerApp to a ClientApp and back, bytes of both ways, and an empty message for what is waiting alone.
x raw: the median ratio to the raw rates just before and after. MiB/transfer: peak memory above idle, over the clients.
p50, p99: of `GET /v1/runs/{run}`, ten times a second beside the load (of naive: a route that does nothing).
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.lib.load.flwr_transport import flwr
from benchmarks.lib.load.load_comparison import duels, generator
from benchmarks.lib.load.state_changes import changing
from benchmarks.lib.load.tables import show
from benchmarks.lib.progress import Tell, clock

Lines = Iterator[dict[str, Any]]


def measure(asked: argparse.Namespace) -> Lines:
    """Every line, as soon as it is measured."""
    tell = clock()
    with TemporaryDirectory(prefix="flexlora-bench-") as made, generator() as pool:
        folder = Path(made)
        yield from duels(pool, asked.clients, asked.mib, asked.repeats, tell, folder)
        yield from changing(pool, asked.seconds, tell, folder)
        if not asked.no_flwr:
            yield from flwr(asked.mib, tell, folder / "flwr")
    if asked.agents:
        yield from _idle(asked.agents, tell)


def _idle(agents: int, tell: Tell) -> Lines:
    """`scripts/bench idle-agents`, in a process of its own."""
    tell(f"{agents} idle agents")
    command = [sys.executable, "-m", "benchmarks.idle_agents", "--agents", str(agents), "--seconds", "60"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    yield {"kind": "idle agents", **json.loads(done.stdout.splitlines()[-1])}


def parser() -> argparse.ArgumentParser:
    """The options."""
    assert __doc__ is not None
    shows = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog="scripts/bench coordinator", description=__doc__, formatter_class=shows)
    made.add_argument("--clients", type=_counts, metavar="N,N,...", help="at once; default: 1,20,200 (quick: 1,20)")
    made.add_argument("--mib", type=int, help="size of each upload; default: 64 (quick: 8)")
    made.add_argument("--repeats", type=int, help="default: 5 for one client, 3 for 20, 1 for 200")
    made.add_argument("--seconds", type=float, help="of each kind of state change; default: 10 (quick: 2)")
    made.add_argument("--agents", type=int, help="idle agents, 0 for none; default: 10000 (quick: 0)")
    made.add_argument("--no-flwr", action="store_true", help="leave flwr out")
    made.add_argument("--quick", action="store_true", help="about two minutes: other defaults")
    made.add_argument("--json", action="store_true", help="a JSON object a line, and nothing else")
    return made


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(count) for count in text.split(","))


def options(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for, the defaults put in."""
    asked = parser().parse_args(given)
    defaults: dict[str, tuple[object, object]] = {  # of --quick, and of everything
        "clients": ((1, 20), (1, 20, 200)),
        "mib": (8, 64),
        "seconds": (2.0, 10.0),
        "agents": (0, 10_000),
    }
    for name, (quick, full) in defaults.items():
        if getattr(asked, name) is None:
            setattr(asked, name, quick if asked.quick else full)
    return asked


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = options(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # or the coordinator would go on without us
    try:
        if asked.json:
            for line in measure(asked):
                print(json.dumps(line), flush=True)
        else:
            show(measure(asked))
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
