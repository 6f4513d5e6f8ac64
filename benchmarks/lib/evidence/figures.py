"""The figures of a comparison: what participants of each rank gain, with intervals, and the way there by round."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.lib.plotting import COLOURS, Bars, Panel, draw
from flexlora_simulation.evidence.summary import Figure, mean_used, measured_on, methods, results
from flexlora_simulation.evidence.table import Evidence

FIRST = ("bucket", "flexlora", "flexlora-residual", "leak 0.1", "shrink 0.3", "view", "view, leak 0.1", "oracle")


def figures(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Draws them into `folder`; the files' names with what they show. A figure that would show nothing is left out."""
    drawn = dict[str, str]()
    cells = [cell for cell in evidence.population if measured_on(evidence, cell)]
    bars = [panel for cell in cells if (panel := _bars(evidence, cell)).bars]
    if bars:
        draw(bars, folder / f"{evidence.name}-ranks.svg")
        drawn[f"{evidence.name}-ranks.svg"] = f"What participants of each rank gain over {evidence.baseline}"
    curves = [_curves(evidence, cell) for cell in cells]
    if any(len(points) > 1 for panel in curves for points in panel.curves.values()):
        draw(curves, folder / f"{evidence.name}-rounds.svg")
        drawn[f"{evidence.name}-rounds.svg"] = "The mean of what participants use, by round"
    return drawn


def _bars(evidence: Evidence, cell: str) -> Bars:
    """Of the differences to the baseline."""
    on, scale = measured_on(evidence, cell)[0], 100 if evidence.percent else 1
    found = {result.method: result for result in results(evidence, cell, on)}

    def bar(figure: Figure) -> tuple[float, float, float]:
        less = figure.less
        return (0.0, 0.0, 0.0) if less is None else (scale * less.mean, scale * less.low, scale * less.high)

    bars = {
        name: [bar(figure) for figure in found[name].by_rank.values()]
        for name in _shown(list(found), evidence.baseline)
    }
    ranks = [f"rank {rank}" for rank in sorted(evidence.population[cell])]
    return Bars(f"{_metric(evidence, on)}, less {evidence.baseline}", ranks, bars, cell)


def _curves(evidence: Evidence, cell: str) -> Panel:
    on = measured_on(evidence, cell)[0]
    curves = dict[str, Sequence[tuple[float, float]]]()
    for name in _shown(methods(evidence, cell), None):
        runs = [run for run in evidence.runs if (run.cell, run.method, run.split) == (cell, name, "measured")]
        by_round = zip(*(mean_used(run, on, evidence.population[cell]) for run in runs), strict=True)
        curves[name] = list(zip(runs[0].rounds, map(fmean, by_round), strict=True))
    return Panel("round", f"{evidence.metric}, {on}", curves, cell, top=None)


def _shown(names: Sequence[str], without: str | None) -> list[str]:
    """As many as there are colours, those of `FIRST` first."""
    first = [name for name in FIRST if name in names and name != without]
    return [*first, *(name for name in names if name not in first and name != without)][: len(COLOURS)]


def _metric(evidence: Evidence, on: str) -> str:
    return f"{evidence.metric} in %, {on}" if evidence.percent else f"{evidence.metric}, {on}"
