"""What of an experiment a method must know before it runs: its participants and its run's definition."""

from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.population.participants import Participant, draw_participants

# The functions that need workloads import them: PyTorch takes seconds, and a comparison's file is checked before.


def drawn(experiment: Experiment) -> tuple[Participant, ...]:
    """The participants. Raises: ExperimentError, DataError."""
    from flexlora_simulation.workloads.registry import open_workload

    return draw_participants(experiment, open_workload(experiment.workload).corpus().train)


def spec_of(experiment: Experiment) -> RunSpec:
    """The run's definition. Raises: ExperimentError, DataError."""
    from flexlora_simulation.simulation import build_spec
    from flexlora_simulation.workloads.registry import open_workload

    return build_spec(experiment, open_workload(experiment.workload).base_model(), drawn(experiment))


def rounds_of(experiment: Experiment) -> int:
    """How many rounds the run has. Raises: ExperimentError."""
    rounds = experiment.run.get("rounds")
    if not isinstance(rounds, int):
        raise ExperimentError("run.rounds: say how many")
    return rounds


def per_round(experiment: Experiment, seen: int) -> int:
    """How many of `seen` participants a round takes."""
    clients = experiment.run.get("clients_per_round")
    return min(clients, seen) if isinstance(clients, int) else seen
