"""Runs one experiment: from its definition to its tables."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from pydantic import ValidationError

from flexlora_client.training.models.describe_model import Description, describe
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import ModelSpec, RunSpec
from flexlora_simulation.engine.coordinator import Coordinator
from flexlora_simulation.engine.earlier import starting_from
from flexlora_simulation.engine.evaluations import Evaluations
from flexlora_simulation.engine.experiment_folder import claimed
from flexlora_simulation.engine.federation import Federation
from flexlora_simulation.engine.jobs import UPDATES, Executor
from flexlora_simulation.engine.processes import Processes
from flexlora_simulation.engine.virtual_clock import START, VirtualClock
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.population.participants import Participant, check_measured, draw_participants
from flexlora_simulation.population.population_file import write_population
from flexlora_simulation.population.resources import rank_pattern, ranks_of
from flexlora_simulation.population.virtual_time import VirtualTime
from flexlora_simulation.results.energy import energy_rows
from flexlora_simulation.results.results import Results
from flexlora_simulation.results.tables import RoundRow, Row, Tables
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
    corpus = workload.corpus()
    items = corpus.train
    participants = draw_participants(experiment, items)
    check_measured(experiment, participants, len(corpus.test))
    spec = build_spec(experiment, workload.base_model(), participants)
    with ExitStack() as stack:
        stack.enter_context(claimed(folder, experiment))
        write_population(folder, experiment, participants, items)
        shutil.rmtree(folder / UPDATES, ignore_errors=True)
        tables = Tables(folder)
        stack.callback(tables.close)

        def record(row: Row) -> None:
            if isinstance(row, RoundRow):  # a round that is recorded has its energy recorded before
                for each in energy_rows(coordinator.round_detail(row.round)):
                    on_row(tables.add(each))
            on_row(tables.add(row))

        clock = VirtualClock(START - timedelta(seconds=1))  # everybody has declared before the first round opens
        if experiment.start_from is not None:
            spec = starting_from(Path(experiment.start_from), folder / "coordinator", spec, clock)
        coordinator = Coordinator(folder / "coordinator", spec, clock)
        stack.callback(coordinator.close)
        clock.advance_to(coordinator.last_instant() or clock.now)
        coordinator.begin({one.name: _declaration(one, spec) for one in participants if one.part.seen})
        clock.advance_to(START)
        running = Processes(experiment, folder, processes, device) if executor is None else executor(experiment, folder)
        stack.callback(running.close)
        by_name = {one.name: one for one in participants}
        evaluations = Evaluations(experiment.evaluation, spec, coordinator, running, by_name, tables, record)
        timing = VirtualTime(experiment.timing, experiment.seed)
        shortens = workload.trainer is None  # a loop of its own may ignore how many steps fit
        Federation(spec, coordinator, clock, by_name, timing, running, evaluations, tables, record, shortens).run()
        evaluations.finish()
        tables.write()
    return Results(folder)


def run_definition(experiment: Experiment) -> RunSpec:
    """The run that the experiment holds, as an operator gives it to a coordinator. Raises: SimulationError."""
    workload = open_workload(experiment.workload)
    return build_spec(experiment, workload.base_model(), draw_participants(experiment, workload.corpus().train))


def build_spec(experiment: Experiment, base: BaseModel, participants: Iterable[Participant]) -> RunSpec:
    """The run's definition, as an operator would write it. Raises: ExperimentError."""
    # who trains no more is measured at its own ranks still, where it holds examples out
    ranks = {rank for one in participants if one.part.seen or one.part.heldout for rank in ranks_of(one.resource)}
    described = _describe(base, min(ranks))
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


def _describe(base: BaseModel, smallest_rank: int) -> Description:
    if base.modules:
        return Description(ModelSpec(id=base.path, task_type=base.task_type, labels=base.labels), base.modules, ())
    return describe(base.path, base.task_type, base.target, base.labels, smallest_rank=smallest_rank)


def _declaration(participant: Participant, spec: RunSpec) -> Declaration:
    resource = participant.resource
    return Declaration(
        rank=resource.rank,
        hold_rank=resource.hold_rank,
        rank_pattern=rank_pattern(resource, spec.modules),
        examples=len(participant.part.train),
        fingerprint=spec.model.fingerprint,  # of the one base model that all of them load
    )
