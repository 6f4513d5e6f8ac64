"""Runs the stages of a plan, each in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.plan import Plan
from flexlora_simulation.results.results import Results
from flexlora_simulation.simulation import simulate

Simulate = Callable[[Experiment, Path], Results]


def run_plan(plan: Plan, folder: Path, run: Simulate = simulate) -> tuple[Results, ...]:
    """The results of each stage; what is done already is not done again.

    folder: of the results where there is one stage; of several, each has a folder of its name in it.
    run: runs one experiment in a folder, `simulate` with options of one's own for example.

    Raises:
        SimulationError: a stage cannot be run as it is, or something that it needs failed.
    """
    if len(plan.stages) == 1:
        return (run(plan.stages[0], folder),)
    results: list[Results] = []
    for stage in plan.stages:
        if results and not plan.alone:
            stage = stage.model_copy(update={"start_from": str(results[-1].folder.resolve())})
        results.append(run(stage, folder / stage.name))
    return tuple(results)
