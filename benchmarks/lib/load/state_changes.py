"""Measures state changes a second of a coordinator on each kind of database."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.lib.load import transitions
from benchmarks.lib.load.collecting import Collecting, collecting
from benchmarks.lib.load.resource_sampler import SampledServer, milliseconds, sample_resources
from benchmarks.lib.load.transitions import Changes
from benchmarks.lib.progress import Tell
from tests.support.databases import create_database, postgres_cluster, postgres_programs

CLIENTS = 16


def changing(pool: ProcessPoolExecutor, seconds: float, tell: Tell, folder: Path) -> Iterator[dict[str, Any]]:
    """The figures, a line a database and kind of change; PostgreSQL where it is installed."""
    for name, opened in (("SQLite", _sqlite), ("PostgreSQL", _postgres)):
        if name == "PostgreSQL" and postgres_programs() is None:
            tell("PostgreSQL is not installed (Debian: apt-get install postgresql): its state changes are not measured")
            continue
        tell(f"state changes on {name}: setting up")
        with opened(folder) as coordinator:
            to = coordinator.round(0)
            for change, work, given in (
                ("declare", transitions.declare, (to, seconds)),
                ("announce, cancel", transitions.announce, (to, 1, seconds)),
            ):
                tell(f"state changes on {name}: {change}")
                watched = SampledServer(coordinator.pid, to.url, f"/v1/runs/{to.run}", coordinator.made.operator_key)
                with sample_resources(watched) as usage:
                    made: Changes = pool.submit(work, *given).result()
                p50, p99 = milliseconds(usage.calls)
                yield {
                    "kind": "state changes",
                    "database": name,
                    "change": change,
                    "clients": CLIENTS,
                    "changes": made.count,
                    "changes_per_s": made.rate,
                    "server_cpu": usage.cpu / made.seconds,
                    "status_p50_ms": p50,
                    "status_p99_ms": p99,
                    "errors": len(made.errors) + len(usage.errors),
                    "error": next(iter((*made.errors, *usage.errors)), None),
                    **coordinator.faults(),
                }


@contextmanager
def _sqlite(folder: Path) -> Iterator[Collecting]:
    with collecting(folder / "sqlite", CLIENTS, 1, 1) as coordinator:
        yield coordinator


@contextmanager
def _postgres(folder: Path) -> Iterator[Collecting]:
    programs = postgres_programs()
    assert programs is not None
    with postgres_cluster(programs, durable=True) as socket:
        url = create_database(socket, "bench").render_as_string(hide_password=False)
        with collecting(folder / "postgres", CLIENTS, 1, 1, FLEXLORA_DATABASE_URL=url) as coordinator:
            yield coordinator
