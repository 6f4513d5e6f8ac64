"""Runs one experiment: from its definition to its tables."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from pydantic import ValidationError

from flexlora_client.training.models.describe_model import describe
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.engine.coordinator import Coordinator
from flexlora_simulation.engine.evaluations import Evaluations
from flexlora_simulation.engine.experiment_folder import claimed
from flexlora_simulation.engine.federation import START, Federation, VirtualClock
from flexlora_simulation.engine.jobs import Executor
from flexlora_simulation.engine.processes import Processes
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.population.participants import Participant, draw_participants
from flexlora_simulation.population.virtual_time import VirtualTime
from flexlora_simulation.results.results import Results
from flexlora_simulation.results.tables import Row, Tables
from flexlora_simulation.workloads.contract import BaseModel
from flexlora_simulation.workloads.registry import open_workload


def simulate(
    experiment: Experiment,
    folder: Path,
    *,
    processes: int = 1,
    device: str = "cpu",
    executor: Callable[[Experiment, Path], Executor] | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Run the experiment in `folder`, or what is left of it there; its tables.

    processes: of one thread each. The adapters and the figures do not depend on how many.
    executor: makes what trains and evaluates instead of those processes; it is closed at the end.
    on_row: called with every row of the tables as it is recorded, in this thread.

    Raises:
        SimulationError: the experiment cannot be run as it is, or something that it needs failed.
    """
    workload = open_workload(experiment.workload)
    participants = draw_participants(experiment, workload.corpus().train)
    spec = build_spec(experiment, workload.base_model(), participants)
    with ExitStack() as stack:
        stack.enter_context(claimed(folder, experiment))
        clock, tables = VirtualClock(), Tables(folder)

        def record(row: Row) -> None:
            tables.add(row)
            on_row(row)

        coordinator = Coordinator(folder / "coordinator", spec.name, clock)
        stack.callback(coordinator.close)
        clock.advance_to(coordinator.last_instant() or START)
        coordinator.begin(spec, {one.name: _declaration(one, spec) for one in participants if one.part.seen})
        running = Processes(experiment, folder, processes, device) if executor is None else executor(experiment, folder)
        stack.callback(running.close)
        by_name = {one.name: one for one in participants}
        evaluations = Evaluations(experiment.evaluation, spec, coordinator, running, by_name, tables, record)
        timing = VirtualTime(experiment.timing, experiment.seed)
        Federation(spec, coordinator, clock, by_name, timing, running, evaluations, record).run()
        evaluations.finish()
        tables.write()
    return Results(folder)


def build_spec(experiment: Experiment, base: BaseModel, participants: Iterable[Participant]) -> RunSpec:
    """The run's definition, as an operator would write it. Raises: ExperimentError."""
    resources = [one.resource for one in participants]
    ranks = {rank for one in resources for rank in (one.rank, one.hold_rank or one.rank, *one.rank_pattern.values())}
    described = describe(base.path, base.task_type, base.target, base.labels, smallest_rank=min(ranks))
    definition = {
        "seed": experiment.seed,
        "ranks": sorted(ranks),
        **experiment.run,
        "name": experiment.name,
        "model": described.model.model_dump(mode="json"),
        "modules": [module.model_dump(mode="json") for module in described.modules],
        "extra": [] if base.head == "frozen" else [tensor.model_dump(mode="json") for tensor in described.extra],
    }
    try:
        return RunSpec.model_validate(definition)
    except ValidationError as error:
        first = error.errors()[0]
        raise ExperimentError(f"run.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _declaration(participant: Participant, spec: RunSpec) -> Declaration:
    resource = participant.resource
    return Declaration(
        rank=resource.rank,
        hold_rank=resource.hold_rank,
        rank_pattern=resource.rank_pattern,
        examples=len(participant.part.train),
        fingerprint=spec.model.fingerprint,  # of the one base model that all of them load
    )
