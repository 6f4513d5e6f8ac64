"""The comparison as Markdown: a table of each cell, and one of every rule's difference to the paper's rule in all cells."""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from benchmarks.lib.rules.rule import PAPER
from benchmarks.lib.rules.teacher.comparing import Cells, Row
from flexlora_simulation.evidence.bootstrap import paired


def markdown(cells: Cells) -> str:
    """Every cell's table, then the differences of the global update and of what participants use."""
    tables = [f"{population}, {kind}\n\n{cell_table(rows)}" for (population, kind), rows in cells.items()]
    tables.append(f"the global update, less `{PAPER}`\n\n{difference_table(cells, 'whole')}")
    tables.append(f"the participants' mean, less `{PAPER}`\n\n{difference_table(cells, 'mean')}")
    return "\n\n".join(tables)


def cell_table(rows: Sequence[Row]) -> str:
    """A row of each rule: agreement with the teacher in %, beside the paper's rule, by rank, and the tail's energy."""
    ranks = sorted(rows[0].outcomes[0].used)
    heads = ["rule", "rate", "global update", f"less `{PAPER}`", "participants' mean", f"less `{PAPER}`"]
    lines = [
        _line([*heads, *(f"rank {rank} uses" for rank in ranks), "tail energy"]),
        "| --- " + "| ---: " * (6 + len(ranks)) + "|",
    ]
    paper = _paper(rows)
    for row in rows:
        whole, mean = (_with_difference(row, paper, name) for name in ("whole", "mean"))
        used = [f"{fmean(one.used[rank] for one in row.outcomes):.1f}" for rank in ranks]
        tail = f"{fmean(one.tail for one in row.outcomes):.2f}"
        lines.append(_line([f"`{row.rule}`", f"{row.rate:g}", *whole, *mean, *used, tail]))
    return "\n".join(lines)


def difference_table(cells: Cells, name: Literal["whole", "mean"]) -> str:
    """A row of each rule, a column of each cell: the paired difference with its interval."""
    lines = [_line(["rule", *(", ".join(cell) for cell in cells)]), "| --- " + "| ---: " * len(cells) + "|"]
    for rows in zip(*cells.values(), strict=True):
        differences = [
            _with_difference(row, _paper(cell), name)[1] for row, cell in zip(rows, cells.values(), strict=True)
        ]
        lines.append(_line([f"`{rows[0].rule}`", *differences]))
    return "\n".join(lines)


def _paper(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.rule == PAPER), None)


def _with_difference(row: Row, paper: Row | None, name: str) -> tuple[str, str]:
    """The mean over the seeds, and the paired difference to the paper's rule, if it is there."""
    values = [getattr(one, name) for one in row.outcomes]
    difference = (
        "" if paper is None or row is paper else str(paired(values, [getattr(one, name) for one in paper.outcomes]))
    )
    return f"{fmean(values):.1f}", difference


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
