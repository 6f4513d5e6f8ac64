"""A federation gives the same adapters simulated and as a networked service: a real coordinator, the agents' code over HTTP.

The simulation's tables say who delivered when; the service's clock is moved to the same instants. All that trains or counts is
the service's own: the coordinator chooses participants, the agents download, train and upload.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flexlora_client.agent.deliver_update import Sender
from flexlora_client.agent.local_parts import EVERYTHING_SHARED
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.round_time import RoundTime
from flexlora_client.agent.slice_cache import request_for_task
from flexlora_client.agent.train_round import TrainRound
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_server.database.queries import adapters
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_simulation import simulate
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.population.participants import Participant, draw_participants
from flexlora_simulation.workloads.registry import open_workload
from tests.simulation.engine.conftest import Run
from tests.support.kit import Served, served_on_sqlite
from tests.support.simulated import folder_with_database, tiny_experiment

STEP_SECONDS = 100.0  # longer than the service counts somebody as present after its last call
LATE = {
    "partition": {"participants": 6, "alpha": 0.3},
    "resources": [{"rank": 2}, {"rank": 4, "speed": 0.6}],
    "timing": {"step_seconds": STEP_SECONDS, "jitter": 0.3, "dropout": 0.2},
    "run": {
        "rounds": 3,
        "over_selection": 1,
        "min_clients": 2,
        "min_updates": 2,
        "round_timeout": 10_000.0,
        "late_updates": "next-round",
        "robust": [{"kind": "norm-clip", "median_factor": 1.0}],
        "training": {"max_steps": 2, "batch_size": 4, "max_length": 16, "learning_rate": 0.01},
    },
}
FRESH = {  # each participant's fresh adapter is seeded by its name
    "timing": {"step_seconds": STEP_SECONDS},
    "run": {"strategy": "flora", "training": {"max_steps": 2, "batch_size": 4, "max_length": 16}},
}


@dataclass
class Member:
    """One participant of the service: the agent's parts, moved by hand."""

    api: Api
    spec: RunSpec
    work: WorkFolder
    learner: LocalTrainer
    reporter: Reporter

    def declare(self, participant: Participant) -> None:
        fingerprint, examples = self.spec.model.fingerprint, len(participant.part.train)
        declared = Declaration(rank=participant.resource.rank, examples=examples, fingerprint=fingerprint)
        self.api.declare(self.spec.name, declared)

    def task(self, wait: int = 0) -> Task | None:
        """Ask for work: so the coordinator knows that it is present, where it waits."""
        found = self.api.task(self.spec.name, wait)
        return found if isinstance(found, Task) else None

    def deliver(self, task: Task) -> None:
        request = request_for_task(task)
        measuring = SliceMeasuring(self.api, self.spec, self.work, self.learner, self.reporter)
        served = measuring.download(request, task.round)
        training = TrainRound(
            self.spec, self.work, self.learner, self.reporter, EVERYTHING_SHARED, RoundTime(), self.api.http.clock_ahead
        )
        assert Sender(self.api, self.spec, self.work, self.reporter).send(training.train(task, request, served))


@contextmanager
def members(site: Served, spec: RunSpec, experiment: Experiment, folder: Path) -> Iterator[dict[str, Member]]:
    """All participants, enrolled and declared."""
    items = open_workload(experiment.workload).corpus().train
    models = Models()
    with ExitStack() as stack:
        found = dict[str, Member]()
        for one in draw_participants(experiment, items):
            examples = [items[index].example for index in one.part.train]
            learner = LocalTrainer(StandardTrainer(models), models, examples, (), 0, "cpu", None, one.name)
            http = Http(site.url, site.enroll(one.name).key)
            api = stack.enter_context(Api(http, RetryPolicy(COMMAND_BACKOFF)))
            member = Member(api, spec, WorkFolder(folder / one.name, spec.name), learner, Reporter(spec.name))
            member.declare(one)
            found[one.name] = member
        yield found


def replay(site: Served, spec: RunSpec, experiment: Experiment, table: pd.DataFrame, folder: Path) -> list[str]:
    """Digests of the adapters that the service publishes for the same deliveries at the same instants."""
    site.operator.expect(201, "POST", "/v1/runs", json=spec.model_dump(mode="json"))
    began = site.clock.now
    with members(site, spec, experiment, folder) as everybody:
        site.operator.expect(200, "POST", f"/v1/runs/{spec.name}/start")
        under_way: list[tuple[float, str, Task]] = []
        for number in range(1, spec.rounds + 1):
            present = free(everybody, under_way)
            with ThreadPoolExecutor(len(present)) as waiting:  # while a round is aggregated all of them ask for work
                list(waiting.map(lambda name: everybody[name].task(wait=1), present))
            assert site.work() == 1
            opened, places = site.clock.now - began, table[table["round"] == number].set_index("participant")
            assert everybody[places.index[0]].task(wait=30) is not None  # the next one has all of them at once
            tasks = {name: everybody[name].task() for name in present}
            assert {name for name, task in tasks.items() if task is not None} == set(places.index)
            for name, row in places.iterrows():
                if row.outcome in {"accepted", "late"}:
                    under_way.append((opened + row.virtual_seconds, str(name), given(tasks[str(name)])))
            while site.round(spec.name, number)["summary"]["state"] == "COLLECTING":
                under_way.sort(key=lambda each: each[0])
                at, name, task = under_way.pop(0)
                site.clock.now = began + at
                everybody[name].deliver(task)
        assert site.work() == 1
    with site.store.reading() as tx:
        return [adapters.get_published(tx, spec.name, number).sha256 for number in range(spec.rounds + 1)]


def free(everybody: dict[str, Member], under_way: Sequence[tuple[float, str, Task]]) -> list[str]:
    return sorted(set(everybody) - {name for _, name, _ in under_way})


def given(task: Task | None) -> Task:
    assert task is not None
    return task


@pytest.mark.parametrize("changes", [LATE, pytest.param(FRESH, marks=pytest.mark.slow)], ids=["late", "fresh"])
def test_simulated_and_served_adapters_are_the_same_bytes(
    run: Run, materials: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    results, executor = run(ParticipantProcess, **changes)
    if changes is LATE:
        assert set(results.participants.outcome) >= {"accepted", "late", "vanished"}
    spec = executor.trained[0].task.spec
    with served_on_sqlite(tmp_path) as site:
        table = results.participants
        digests = replay(site, spec, tiny_experiment(materials, **changes), table, tmp_path / "service")
    assert digests == list(results.rounds.adapter_sha256)
    assert len(set(digests)) == len(digests)


@pytest.mark.slow
def test_several_processes_give_the_bytes_of_one(run: Run, materials: Path, tmp_path: Path) -> None:
    here, _ = run(ParticipantProcess, **LATE)
    folder = folder_with_database(tmp_path / "processes")
    there = simulate(tiny_experiment(materials, **LATE), folder, processes=2)
    assert list(there.rounds.adapter_sha256) == list(here.rounds.adapter_sha256)
