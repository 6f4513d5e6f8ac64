"""Charts side by side in one SVG, small and fit for any background; the same panels give the same file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLOURS = (  # of a panel's curves in turn; legible on white and on black, as the grey is
    "#d1651f",
    "#3b82d6",
    "#2f9e58",
    "#b04fc4",
    "#b8860b",
    "#1fa3a3",
    "#e0518a",
    "#7a7acb",
)
GREY = "#808080"
GREYS = ("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color", "xtick.color", "ytick.color")
# Text as text, so that the file is small
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flexlora",
    "font.family": "sans-serif",
    **dict.fromkeys(GREYS, GREY),
}


@dataclass(frozen=True)
class Panel:
    """One chart: curves of points (x, y) by label; levels by label, dashed.

    With `ticks` both axes are logarithmic, and x is marked there; without, y goes from 0 to `top`, None: as far as it must.
    """

    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    title: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    ticks: Sequence[float] = ()
    top: float | None = 1.03


@dataclass(frozen=True)
class Bars:
    """One chart of bars side by side: by label, for each group, (value, low, high); the last two are marked as an interval."""

    y: str
    groups: Sequence[str]
    bars: Mapping[str, Sequence[tuple[float, float, float]]]
    title: str = ""


def draw(panels: Sequence[Panel | Bars], to: Path) -> None:
    """Write the panels to `to`. If all have the same y, they share its axis, and the first alone has a legend."""
    import matplotlib
    from matplotlib.figure import Figure

    shared = len({panel.y for panel in panels}) == 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
        charts: Sequence[Any] = figure.subplots(1, len(panels), sharey=shared, squeeze=False)[0]
        for number, (chart, panel) in enumerate(zip(charts, panels, strict=True)):
            if isinstance(panel, Panel):
                _fill(chart, panel)
            else:
                _fill_bars(chart, panel)
            if number == 0 or not shared:
                chart.set_ylabel(panel.y)
                chart.legend(frameon=False)
        figure.savefig(to, format="svg", transparent=True, metadata={"Date": None})


def _fill(chart: Any, panel: Panel) -> None:
    marks = {"marker": "o", "markersize": 4} if panel.ticks else {}
    for (label, points), colour in zip(panel.curves.items(), COLOURS, strict=False):
        chart.plot(*zip(*points, strict=True), label=label, color=colour, **marks)
    for label, value in panel.levels.items():
        chart.axhline(value, label=label, color=GREY, linestyle="--", linewidth=1)
    chart.set(title=panel.title, xlabel=panel.x)
    if panel.ticks:
        chart.set(xscale="log", yscale="log")
        chart.set_xticks(panel.ticks, labels=map(str, panel.ticks))
        chart.minorticks_off()
    else:
        chart.set(ylim=(0, panel.top), xlim=(0, None))
    chart.grid(alpha=0.3)


def _fill_bars(chart: Any, panel: Bars) -> None:
    width = 0.85 / len(panel.bars)
    for number, ((label, values), colour) in enumerate(zip(panel.bars.items(), COLOURS, strict=False)):
        places = [group - 0.425 + (number + 0.5) * width for group in range(len(panel.groups))]
        means, lows, highs = zip(*values, strict=True)
        marks = [[m - x for m, x in zip(means, lows, strict=True)], [x - m for m, x in zip(means, highs, strict=True)]]
        chart.bar(places, means, width, yerr=marks, label=label, color=colour, ecolor=GREY, error_kw={"linewidth": 0.8})
    chart.axhline(0, color=GREY, linewidth=0.8)
    chart.set_xticks(range(len(panel.groups)), labels=panel.groups)
    chart.set(title=panel.title)
    chart.grid(axis="y", alpha=0.3)
