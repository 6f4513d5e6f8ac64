"""The command `run`."""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flexlora_client.cli.agent_extra import require_extra
from flexlora_simulation.cli.extra import require_simulation_extra
from flexlora_simulation.cli.options import (
    ChangeOptions,
    ExperimentArgument,
    default_folder,
    load_changed,
    with_changes,
)

if TYPE_CHECKING:
    from flexlora_simulation.cli.progress import Progress
    from flexlora_simulation.engine.jobs import Executor
    from flexlora_simulation.experiment import Experiment
    from flexlora_simulation.results.tables import Row


@with_changes
def run(
    path: ExperimentArgument,
    *,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where everything is kept. \\[runs/NAME/seed-SEED]")
    ] = None,
    changes: ChangeOptions,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="Processes that train, a thread each. \\[one a CPU, or one a GPU]"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where they train: cpu, cuda, cuda:1 or mps.")] = "cpu",
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Train on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    gpus: Annotated[
        float, typer.Option("--gpus", min=0, help="Share of a GPU that each process on the Ray cluster takes.")
    ] = 0.0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write figures for TensorBoard into the folder, too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each row of the tables as JSON on stdout as it is recorded.")
    ] = False,
) -> None:
    """Run an experiment; the same command again goes on where it was interrupted."""
    require_simulation_extra()
    if tensorboard:
        require_extra("tensorboard", ("tensorboard",))
    if ray is None and gpus:
        raise typer.BadParameter("it is for --ray; without, --device says where to train", param_hint="--gpus")
    if ray is not None and device != "cpu":
        raise typer.BadParameter("on a Ray cluster --gpus says where to train", param_hint="--device")
    experiment = load_changed(path, changes)
    place = folder or default_folder(experiment)
    from flexlora_simulation.cli.show import show_folder
    from flexlora_simulation.results.tensorboard import TensorBoard
    from flexlora_simulation.simulation import simulate  # brings PyTorch, which takes seconds
    from flexlora_simulation.workloads.registry import open_workload

    metric = open_workload(experiment.workload).metric
    with ExitStack() as stack:
        listeners: list[Callable[[Row], None]] = [stack.enter_context(_progress(experiment, place, metric))]
        if as_json:
            listeners.append(_print)
        board = TensorBoard(place)
        if tensorboard:
            stack.callback(board.close)
            listeners.append(board)

        def tell(row: "Row") -> None:
            for listener in listeners:
                listener(row)

        executor = None if ray is None else _cluster(ray, gpus, processes)
        simulate(
            experiment,
            place,
            processes=processes or _as_many_as_fit(device),
            device=device,
            executor=executor,
            on_row=tell,
        )
        if tensorboard:
            board.open()  # where nothing was left to be done, too
    if not as_json:
        show_folder(place, metric)
        print(f"\nThe tables are in {place}.")


def _progress(experiment: "Experiment", folder: Path, metric: str) -> "Progress":
    """For people, on stderr."""
    from rich.console import Console

    from flexlora_simulation.cli.progress import Progress
    from flexlora_simulation.results.tables import RoundRow, read_rows

    done = max((row.round for row in read_rows(folder) if isinstance(row, RoundRow)), default=0)
    rounds, updates = (experiment.run.get(name) for name in ("rounds", "clients_per_round"))
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    return Progress(rounds, done, updates, metric, console)  # type: ignore[arg-type]  # checked when the run begins


def _cluster(address: str, gpus: float, processes: int | None) -> "Callable[[Experiment, Path], Executor]":
    """What trains on a Ray cluster. Raises: SimulationError, where Ray is not installed."""
    from flexlora_simulation.engine.ray_cluster import RayCluster  # an extra of its own

    return lambda experiment, folder: RayCluster(experiment, folder, address, gpus=gpus, actors=processes)


def _print(row: "Row") -> None:
    print(json.dumps({"table": row.table, **asdict(row)}), flush=True)


def _as_many_as_fit(device: str) -> int:
    """How many processes: one for each CPU; on GPUs, whose memory holds the base model once for each, one for each GPU."""
    if device == "cpu":
        return _cpus()
    import torch

    return max(torch.cuda.device_count(), 1) if device == "cuda" else 1


def _cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
