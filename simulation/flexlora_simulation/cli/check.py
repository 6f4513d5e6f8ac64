"""The commands `check` and `workloads`: what an experiment would do, and what can be learned."""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from flexlora_simulation.cli.extra import require_simulation_extra
from flexlora_simulation.cli.options import ChangeOptions, ExperimentArgument, load_changed, with_changes
from flexlora_simulation.errors import ExperimentError

if TYPE_CHECKING:
    from flexlora_shared.messages.runs import RunSpec
    from flexlora_simulation.experiment import Experiment
    from flexlora_simulation.population.participants import Participant


@with_changes
def check(path: ExperimentArgument, *, changes: ChangeOptions) -> None:
    """Check an experiment and say what it consists of; nothing is trained."""
    require_simulation_extra()
    experiment = load_changed(path, changes)
    from flexlora_simulation.cli import rendering
    from flexlora_simulation.population.participants import draw_participants
    from flexlora_simulation.simulation import build_spec  # brings PyTorch, which takes seconds
    from flexlora_simulation.workloads.registry import open_workload

    workload = open_workload(experiment.workload)
    corpus = workload.corpus()
    participants = draw_participants(experiment, corpus.train)
    spec = build_spec(experiment, workload.base_model(), participants)
    _check_spec(spec)
    rendering.show(
        rendering.table_of(
            None,
            [
                ("experiment", f"{experiment.name}, seed {experiment.seed}"),
                ("workload", f"{experiment.workload.name}, measured by {workload.metric}"),
                ("base model", f"{spec.model.id}, {spec.model.task_type}, {len(spec.modules)} modules adapted"),
                *_population(participants),
                ("test examples", len(corpus.test)),
                *_work(experiment, spec, participants),
            ],
        )
    )


def workloads() -> None:
    """List what can be learned; packages may add to it."""
    require_simulation_extra()
    from flexlora_simulation.cli import rendering
    from flexlora_simulation.workloads.registry import workload_names

    rendering.show(
        rendering.table_of(("workload", "metric", "what it is"), [_workload(name) for name in workload_names()])
    )


def _workload(name: str) -> tuple[str, str, str]:
    from flexlora_simulation.workloads.registry import find_workload

    try:
        found = find_workload(name)
    except ExperimentError as error:  # of an installed package
        return name, "-", str(error)
    return name, found.metric, (inspect.getdoc(found) or "").partition("\n")[0]


def _check_spec(spec: "RunSpec") -> None:
    from flexlora_server.errors import Refusal
    from flexlora_server.lifecycle.validation import check_spec

    try:
        check_spec(spec)
    except Refusal as refusal:
        raise ExperimentError(f"run: {refusal}") from refusal


def _population(participants: "Sequence[Participant]") -> Iterator[tuple[str, str]]:
    seen = [one for one in participants if one.part.seen]
    yield "participants", f"{len(seen)} that train, {len(participants) - len(seen)} unseen"
    by_rank = Counter((one.resource.rank, one.resource.hold_rank or one.resource.rank) for one in seen)
    for (rank, held), count in sorted(by_rank.items()):
        yield f"of rank {rank}" + ("" if held == rank else f" (holding {held})"), str(count)
    sizes = [len(one.part.train) for one in seen]
    yield "training examples", f"{sum(sizes)}; each has {min(sizes)} to {max(sizes)}, in the median {median(sizes):g}"
    yield "held-out examples", str(sum(len(one.part.heldout) for one in seen))


def _work(
    experiment: "Experiment", spec: "RunSpec", participants: "Sequence[Participant]"
) -> Iterator[tuple[str, str]]:
    from flexlora_simulation.population.virtual_time import steps_of

    seen = [one for one in participants if one.part.seen]
    each = min(spec.clients_per_round or len(seen), len(seen))
    steps = sum(steps_of(spec.training, len(one.part.train)) for one in seen) / len(seen)
    yield "rounds", f"{spec.rounds}, with the updates of {each} participants each"
    yield "trainings", f"about {spec.rounds * each}, of {steps:.0f} optimizer steps in the mean"
