"""The results and costs of a federation's rounds: rows, the agents' own metrics, and how they are printed."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.watch import Record

Metrics = dict[str, float]


@dataclass(frozen=True)
class Row:
    """What one round published, and what it cost. Round 0 is what training starts from."""

    round: int
    metrics: Metrics  # of the global adapter at the largest rank
    updates: int  # accepted
    bytes_up: int  # adapters, by the coordinator's count
    bytes_down: int  # adapters, by the agents' count
    seconds: float  # from opening to publication


@dataclass
class Tally:
    """What the agents said so far: traffic by round, and the last round known to be published."""

    published: int = 0
    down: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # bytes; under 0 what no task asked for
    records: dict[str, Record] = field(default_factory=lambda: defaultdict(Record))
    _working: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, event: dict[str, Any]) -> None:
        """Add one agent's event."""
        self.records[name].take(event)
        match event["event"]:
            case "task":
                self._working[name] = event["round"]
                self.published = max(self.published, event["round"] - 1)
            case "downloaded":
                self.down[self._working.get(name, 0)] += event["bytes"]
            case "accepted" | "lost":
                self._working.pop(name, None)
            case "completed":
                self.published = max(self.published, event["rounds"])


def printer(columns: Sequence[str], *, silent: bool) -> Callable[[Row], None]:
    """Prints a table row by row, as the rounds are published; `columns` are metrics."""

    def show(row: Row) -> None:
        if silent:
            return
        if row.round == 0:
            names = ("round", *columns, "updates", "bytes up", "bytes down", "seconds")
            print("".join(f"{name:>13}" for name in names))
        values = [f"{row.metrics[name]:.4f}" for name in columns]
        cells = (row.round, *values, row.updates, f"{row.bytes_up:,}", f"{row.bytes_down:,}", f"{row.seconds:.1f}")
        print("".join(f"{cell:>13}" for cell in cells), flush=True)

    return show


def show_people(figures: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Print every participant's traffic and its own held-out metrics, of the first adapter it had and of the last."""
    names = ("rank", "bytes up", "bytes down", *(f"{name} {when}" for name in columns for when in ("before", "after")))
    print(f"\n{'participant':<28}" + "".join(f"{name:>16}" for name in names))
    for one in figures["participants"]:
        heldout: Mapping[int, Metrics] = one["heldout"]
        ends = (heldout[min(heldout)], heldout[max(heldout)]) if heldout else ({}, {})
        metrics = [f"{at[name]:.4f}" if name in at else "-" for name in columns for at in ends]
        cells = (one["rank"], f"{one['bytes_up']:,}", f"{one['bytes_down']:,}", *metrics)
        print(f"{one['name'][:27]:<28}" + "".join(f"{cell:>16}" for cell in cells))
    print(
        f"\n{figures['wall_seconds']} s; CPU time of all processes {figures['cpu_seconds']} s; "
        f"memory of all agents {figures['agents_memory_mib']} MiB"
    )
