"""Formats an experiment and its overview as tables."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from flexlora_simulation.results.overview import Overview, RankGroup
from flexlora_simulation.results.tables import RoundRow

PIPE_WIDTH = 200  # columns where stdout is no terminal: nothing is folded for the reader behind the pipe
OUTCOMES = ("accepted", "late", "discarded", "vanished")  # and what else there is after them


def show(*tables: Table) -> None:
    """Print tables on stdout, with an empty line in between."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for number, table in enumerate(tables):
        if number:
            console.print()
        console.print(table)


def table_of(columns: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> Table:
    """A table without lines; columns: their headings, None for two without."""
    table = Table(box=None, pad_edge=False, show_header=columns is not None)
    for name in columns or ("", ""):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def rounds_table(overview: Overview, metric: str) -> Table:
    """A line for each round, with the metric on each set and at each rank."""
    measured = sorted({(on, rank) for _, on, rank in overview.figures})
    headings = (
        "round",
        "virtual time",
        "updates",
        "train loss",
        *(f"{on} {metric}, r={rank}" for on, rank in measured),
    )
    return table_of(
        headings,
        [
            (*_round(row), *(_figure(overview.figures.get((row.round, on, rank))) for on, rank in measured))
            for row in overview.rounds
        ],
    )


def groups_table(overview: Overview, metric: str) -> Table:
    """A line for each rank that participants train at and hold."""
    found = {outcome for group in overview.groups for outcome in group.outcomes}
    outcomes = [*OUTCOMES, *sorted(found - set(OUTCOMES))]
    headings = ("rank", "participants", *outcomes, "train loss", f"heldout {metric}", "MB up", "MB down", "CPU s")
    return table_of(headings, [_group(group, outcomes) for group in overview.groups])


def _round(row: RoundRow) -> tuple[object, ...]:
    time = timedelta(seconds=round(row.virtual_seconds))
    return row.round, time, f"{row.accepted} of {row.assigned}", _figure(row.train_loss)


def _group(group: RankGroup, outcomes: Sequence[str]) -> tuple[object, ...]:
    held = "" if group.hold_rank == group.rank else f" (holding {group.hold_rank})"
    return (
        f"{group.rank}{held}",
        group.participants,
        *(group.outcomes[outcome] for outcome in outcomes),
        _figure(group.train_loss),
        _figure(group.heldout),
        f"{group.bytes_up / 1e6:.1f}",
        f"{group.bytes_down / 1e6:.1f}",
        f"{group.cpu_seconds:.1f}",
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
