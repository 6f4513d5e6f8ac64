"""Small charts over rounds, side by side in one SVG, in the look of the cost curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.curves import COLOURS, GREY, look


@dataclass(frozen=True)
class Panel:
    """One chart: lines by label, a value for each of rounds 0, 1, ...; and levels by label, dashed."""

    title: str
    y: str
    lines: Mapping[str, Sequence[float]]
    levels: Mapping[str, float] = field(default_factory=dict)


def draw(panels: Sequence[Panel], to: Path) -> None:
    """Write the panels to `to`; the same panels give the same file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(look()):
        figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
        charts: Sequence[Any] = figure.subplots(1, len(panels), squeeze=False)[0]
        for chart, panel in zip(charts, panels, strict=True):
            _fill(chart, panel)
        figure.savefig(to, format="svg", transparent=True, metadata={"Date": None})


def _fill(chart: Any, panel: Panel) -> None:
    for (label, values), colour in zip(panel.lines.items(), COLOURS.values(), strict=False):
        chart.plot(values, label=label, color=colour)
    for label, value in panel.levels.items():
        chart.axhline(value, label=label, color=GREY, linestyle="--", linewidth=1)
    chart.set(title=panel.title, xlabel="round", ylabel=panel.y, ylim=(0, 1.03), xlim=(0, None))
    chart.grid(alpha=0.3)
    chart.legend(frameon=False)
