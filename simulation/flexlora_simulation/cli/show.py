"""The command `show`: an experiment's tables for people, also while it runs."""

from pathlib import Path
from typing import Annotated

import typer

from flexlora_simulation.cli.extra import require_simulation_extra
from flexlora_simulation.errors import ExperimentError


def show(
    folder: Annotated[Path, typer.Argument(help="Folder of the experiment.", metavar="FOLDER")],
    metric: Annotated[
        str | None, typer.Option("--metric", help="Another figure, as loss. \\[the workload's own metric]")
    ] = None,
) -> None:
    """Show an experiment round by round, and by the ranks of participants; it may still run."""
    require_simulation_extra()
    from flexlora_simulation.engine.experiment_folder import EXPERIMENT_FILE
    from flexlora_simulation.experiment import load
    from flexlora_simulation.workloads.registry import open_workload

    if metric is None:
        if not (folder / EXPERIMENT_FILE).exists():
            raise ExperimentError(f"{folder} holds no experiment; flexlora-sim run makes one")
        metric = open_workload(load(folder / EXPERIMENT_FILE).workload).metric
    show_folder(folder, metric)


def show_folder(folder: Path, metric: str) -> None:
    """Print the tables of an experiment. Raises: ExperimentError, where there is nothing of it, or nothing of the metric."""
    from flexlora_simulation.cli import rendering
    from flexlora_simulation.results.overview import metrics_in, overview_of
    from flexlora_simulation.results.tables import read_rows

    rows = list(read_rows(folder))
    if not rows:
        raise ExperimentError(f"{folder} holds no round of an experiment yet")
    known = metrics_in(rows)
    if known and metric not in known:
        raise ExperimentError(f"nothing was measured by {metric}; there are {', '.join(known)}")
    overview = overview_of(rows, metric)
    rendering.show(rendering.rounds_table(overview, metric), rendering.groups_table(overview, metric))
