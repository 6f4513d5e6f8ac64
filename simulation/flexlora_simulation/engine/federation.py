"""One federation in virtual time: events in the order of their instants, until the run is over.

The coordinator's state machine decides everything; this loop is the world around it: who is there, how long each participant
takes, who vanishes. Between two events nothing happens, so the clock jumps. What a participant trains depends on its slice and
its data alone, so trainings run side by side in any order, and their updates are delivered in the order of virtual time.

A federation that was killed goes on from the coordinator's database: who was given a task and has not delivered is drawn again,
the same.
"""

import heapq
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from flexlora_server.state_machine import RoundView, updates_needed
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_simulation.engine.coordinator import Assigned, Coordinator
from flexlora_simulation.engine.evaluations import Evaluations
from flexlora_simulation.engine.jobs import Executor, TrainedUpdate, TrainingJob
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.population.participants import Participant
from flexlora_simulation.population.virtual_time import VirtualTime
from flexlora_simulation.results.tables import ParticipantRow, RoundRow, Row

START = datetime(2020, 1, 1, tzinfo=UTC)


class VirtualClock:
    """The federation's time; it jumps from event to event and never goes back."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now.timestamp()

    def advance_to(self, instant: datetime) -> None:
        """Jump, unless it is later already."""
        self.now = max(self.now, instant)


@dataclass(order=True)
class Arrival:
    """An update on its way; `training` is None until somebody needs it."""

    at: datetime
    participant: str
    round: int
    task: Task = field(compare=False)
    seconds: float = field(compare=False)
    training: "Future[TrainedUpdate] | None" = field(compare=False, default=None)


@dataclass
class Federation:
    """The world around one coordinator."""

    spec: RunSpec
    coordinator: Coordinator
    clock: VirtualClock
    participants: Mapping[str, Participant]
    timing: VirtualTime
    executor: Executor
    evaluations: Evaluations
    record: Callable[[Row], None]
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._names = self.coordinator.client_names()
        self._clients = {name: client for client, name in self._names.items()}
        self._arrivals: list[Arrival] = []
        self._given: set[tuple[str, int, int]] = set()  # client, round, attempt

    def run(self) -> None:
        """All rounds that are left.

        Raises:
            SimulationError: the run failed, or waits for participants that never come.
        """
        while (now := self.coordinator.snapshot()).round is not None:
            view = now.round
            if now.run_state == "FAILED":
                raise SimulationError(f"round {view.number} could not be aggregated: {now.reason}")
            if view.state == "AGGREGATING":
                self._aggregate(view)
                continue
            if view.state == "OPEN":
                self._gather(view)
            else:
                self._give_tasks()
            if self.coordinator.snapshot().round == view:
                self._wait(view, now.wait_until)
        if now.run_state != "COMPLETED":
            raise SimulationError(f"the run is {now.run_state}: {now.reason}")

    def _gather(self, view: RoundView) -> None:
        busy = {arrival.participant for arrival in self._arrivals}
        there = [
            self._clients[name]
            for name, participant in self.participants.items()
            if participant.part.seen
            and name not in busy
            and self.timing.is_available(participant, view.number, view.attempt)
        ]
        self.coordinator.poll(there)

    def _give_tasks(self) -> None:
        """Everybody who was just assigned begins; only trainings whose updates may be needed begin at once."""
        for assigned in self.coordinator.assigned():
            place = (assigned.client, assigned.round, assigned.attempt)
            if place not in self._given:
                self._given.add(place)
                self._give(assigned)
        self._begin_needed()

    def _give(self, assigned: Assigned) -> None:
        if assigned.accepted:
            return
        name = self._names[assigned.client]
        participant, task = self.participants[name], self.coordinator.task(assigned.client)
        if task is None or any(arrival.participant == name for arrival in self._arrivals):
            return
        if self.timing.vanishes(participant, task.round, task.attempt):
            self._record_part(task, name, "vanished", None, None)
            return
        seconds = self.timing.seconds(participant, task)
        begun = datetime.fromisoformat(task.deadline) - timedelta(seconds=self.spec.round_timeout)
        heapq.heappush(self._arrivals, Arrival(begun + timedelta(seconds=seconds), name, task.round, task, seconds))

    def _begin_needed(self) -> None:
        view = self.coordinator.snapshot().round
        if view is None or view.deadline is None:
            return
        needed = updates_needed(self.spec, view) - view.accepted
        for arrival in sorted(self._arrivals)[: max(needed, 0)]:
            self._begin(arrival)

    def _begin(self, arrival: Arrival) -> "Future[TrainedUpdate]":
        if arrival.training is None:
            job = TrainingJob(arrival.participant, arrival.task, self.coordinator.file(arrival.task.adapter.sha256))
            arrival.training = self.executor.train(job)
        return arrival.training

    def _wait(self, view: RoundView, until: datetime | None) -> None:
        """Jump to the next event: an update arrives, or a deadline passes."""
        if self._arrivals and (until is None or self._arrivals[0].at < until):
            arrival = heapq.heappop(self._arrivals)
            self.clock.advance_to(arrival.at)
            self._deliver(arrival)
        elif until is not None:
            self.clock.advance_to(until)
            self.coordinator.poll(())
        else:
            raise SimulationError(
                f"round {view.number} waits for participants that never come: lower run.min_clients or run.min_updates, raise "
                "timing.available, or lower timing.dropout"
            )

    def _deliver(self, arrival: Arrival) -> None:
        trained = self._begin(arrival).result()
        receipt = self.coordinator.deliver(
            self._clients[arrival.participant], arrival.round, trained.upload, trained.file
        )
        outcome = "discarded" if receipt is None else "accepted" if receipt.counts_in == arrival.round else "late"
        self._record_part(arrival.task, arrival.participant, outcome, arrival.seconds, trained)

    def _aggregate(self, view: RoundView) -> None:
        began = time.monotonic()
        self.coordinator.aggregate()
        after = self.coordinator.snapshot().round
        if after is not None and after.number == view.number:
            return  # it failed, and is tried again or the run is FAILED
        self.record(
            RoundRow(
                round=view.number,
                attempt=view.attempt,
                virtual_seconds=(self.clock.now - START).total_seconds(),
                assigned=view.assigned,
                accepted=view.accepted,
                adapter_sha256=self.coordinator.adapter_sha256(view.number),
                wall_seconds=time.monotonic() - self.began,
                aggregation_seconds=time.monotonic() - began,
            )
        )
        self.evaluations.begin(view.number)

    def _record_part(
        self, task: Task, name: str, outcome: str, seconds: float | None, trained: TrainedUpdate | None
    ) -> None:
        metrics = {} if trained is None else trained.upload.metrics
        steps = metrics.get("train_steps")
        self.record(
            ParticipantRow(
                round=task.round,
                attempt=task.attempt,
                participant=name,
                rank=task.rank,
                hold_rank=task.hold_rank or task.rank,
                outcome=outcome,  # type: ignore[arg-type]
                virtual_seconds=seconds,
                examples=0 if trained is None else trained.upload.examples,
                train_loss=metrics.get("train_loss"),
                steps=None if steps is None else int(steps),
                bytes_up=0 if trained is None else trained.upload.size,
                bytes_down=task.adapter.size,
                cpu_seconds=0.0 if trained is None else trained.cpu_seconds,
            )
        )
