"""A simulation on a Ray cluster gives the bytes of one on this machine, whatever happens to the nodes."""

import os
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from flexlora_simulation import simulate
from flexlora_simulation.engine.jobs import TrainingJob
from flexlora_simulation.engine.ray_cluster import RayCluster
from flexlora_simulation.engine.ray_node import Expected, ParticipantNode, SentUpdate
from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.results.results import Results
from flexlora_simulation.results.tables import RoundRow, Row
from tests.ray.conftest import TwoNodes
from tests.ray.test_ray_executor import client_server, wait_until
from tests.support.simulated import folder_with_database, here, tiny_experiment

pytestmark = pytest.mark.ray
DEADLINE = 600.0  # seconds after which a test that waits has failed


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """All four train in each of three rounds, on two nodes: some train elsewhere than before, and all keep Adam's state."""
    training = {"max_steps": 2, "batch_size": 4, "max_length": 16, "optimizer_state": "keep"}
    run = {"rounds": 3, "clients_per_round": 4, "training": training}
    return tiny_experiment(tmp_path_factory.mktemp("materials"), run=run, evaluation={"on": ["test"]})


@pytest.fixture(scope="module")
def expected(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What this process makes by itself."""
    return tables(simulate(experiment, folder_with_database(tmp_path_factory.mktemp("run") / "run"), executor=here))


def tables(results: Results) -> Any:
    """All that no clock of a machine is in."""
    rounds = results.rounds[["round", "attempt", "adapter_sha256"]]
    participants = results.participants.drop(columns=["cpu_seconds"])
    return [table.to_dict("records") for table in (rounds, participants, results.evaluations)]


def on(address: str, node: type[ParticipantNode] = ParticipantNode, **options: Any) -> Any:
    """For `simulate(executor=...)`: the cluster, with these nodes."""
    cluster: Any = type("Cluster", (RayCluster,), {"node": node})
    return partial(cluster, address=address, **options)


def standing(victim: str, stands: Path) -> type[ParticipantNode]:
    """Nodes of which the victim stands still in its first training of round 2, and says so; the others wait for that."""

    class Standing(ParticipantNode):
        def train(self, job: TrainingJob, slice: bytes, kept: Mapping[str, bytes]) -> SentUpdate:
            if job.task.round == 2 and ray.get_runtime_context().get_node_id() == victim:
                stands.touch()
                threading.Event().wait()
            while job.task.round == 2 and not stands.exists():
                threading.Event().wait(0.02)
            return super().train(job, slice, kept)

    return Standing


def test_a_node_killed_in_the_middle_of_a_round_costs_nothing(
    cluster: TwoNodes, experiment: Experiment, expected: Any, tmp_path: Path
) -> None:
    """Participants that trained there in round 1 go on elsewhere with what they kept."""
    stands, made = tmp_path / "stands", list[Any]()
    executor = on(cluster.address, standing(cluster.worker, stands))
    simulation = threading.Thread(
        target=lambda: made.append(tables(simulate(experiment, tmp_path / "run", executor=executor))), daemon=True
    )
    simulation.start()
    wait_until(lambda: stands.exists() or not simulation.is_alive(), DEADLINE)
    assert stands.exists()
    for process in cluster.worker_processes():
        os.kill(process.pid, signal.SIGKILL)
    simulation.join(DEADLINE)
    assert made == [expected]
    assert not ray.is_initialized()


class Enough(Exception):
    """Ends a simulation from within."""


def test_two_nodes_begin_and_this_machine_goes_on(
    cluster: TwoNodes, experiment: Experiment, expected: Any, tmp_path: Path
) -> None:
    """The simulation is no node of the cluster, and has more actors than there is room for; its folder says all that matters."""

    def stop_after_round_2(row: Row) -> None:
        if isinstance(row, RoundRow) and row.round == 2:
            raise Enough

    server, address = client_server(cluster)
    try:
        with pytest.raises(Enough):
            simulate(experiment, tmp_path / "run", executor=on(address, actors=3), on_row=stop_after_round_2)
    finally:
        server.terminate()
        server.wait()
    assert tables(simulate(experiment, tmp_path / "run", executor=here)) == expected


class Older(ParticipantNode):
    """A node of another version."""

    def check(self, expected: Expected) -> None:
        raise SimulationError("the Ray node is older")


def test_what_a_cluster_cannot_do_is_a_sentence(
    cluster: TwoNodes, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SimulationError, match="2 processors and 0 GPUs, which is no room"):
        on(cluster.address, gpus=0.5)(experiment, tmp_path)
    with pytest.raises(SimulationError, match=r"^the Ray node is older$"):
        simulate(experiment, tmp_path / "run", executor=on(cluster.address, Older))
    data = Path(str(experiment.workload.data))
    monkeypatch.chdir(data.parent)
    relative = experiment.workload.model_copy(update={"data": data.name})
    with pytest.raises(ExperimentError, match=r"workload\.data: give .* as an absolute path"):
        on(cluster.address)(experiment.model_copy(update={"workload": relative}), tmp_path)


@pytest.mark.filterwarnings("ignore:Ray Client connection timed out:UserWarning")  # beside the error, once a process
def test_a_cluster_that_is_not_there_is_a_sentence(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(
        SimulationError, match=r"no Ray cluster at --ray ray://127.0.0.1:1: start one .* or leave it out"
    ):
        on("ray://127.0.0.1:1")(experiment, tmp_path)
