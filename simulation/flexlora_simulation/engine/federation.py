"""One federation in virtual time: events in the order of their instants, until the run is over.

The coordinator's state machine decides everything; this loop is the world around it: who is there, how long each participant
takes, who vanishes or fails. Between two events nothing happens, so the clock jumps.

A federation that was killed goes on from the coordinator's database: every draw depends on names and numbers alone, so who has
a place there and has not delivered is on its way again as it was.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from flexlora_client.agent.report_failure import MAX_REASON_CHARS, failure_kind
from flexlora_client.errors import ClientError, TrainingError
from flexlora_server.state_machine import RoundView
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Failure
from flexlora_simulation.engine.coordinator import Coordinator, Snapshot
from flexlora_simulation.engine.deliveries import Deliveries, Delivery
from flexlora_simulation.engine.evaluations import Evaluations
from flexlora_simulation.engine.jobs import Executor, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.places import Place
from flexlora_simulation.engine.rows import outcome_of, place_row, round_row
from flexlora_simulation.engine.virtual_clock import VirtualClock
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.population.participants import Participant
from flexlora_simulation.population.virtual_time import VirtualTime
from flexlora_simulation.results.tables import ParticipantRow, RoundRow, Row, Tables

MOST_WAITS = 1000  # for participants to be available


@dataclass
class Federation:
    """The world around one coordinator.

    record: takes each row of the tables, which say what was recorded before. shortens: whether the training loop ends before the
    deadline, as the agent's own does; updates of another that takes too long come late.
    """

    spec: RunSpec
    coordinator: Coordinator
    clock: VirtualClock
    participants: Mapping[str, Participant]
    timing: VirtualTime
    executor: Executor
    evaluations: Evaluations
    tables: Tables
    record: Callable[[Row], None]
    shortens: bool = True
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._deliveries = Deliveries(self.spec, self.executor)
        self._clients = self.coordinator.clients()
        self._given: dict[tuple[str, int], bool] = {}  # name and round of each place: whether an update may come of it
        self._collecting = (0, 0)  # round and attempt whose places were given
        self._there: tuple[tuple[int, int, int], list[str]] = ((0, 0, 0), [])

    def run(self) -> None:
        """All rounds that are left.

        Raises:
            SimulationError: the run failed, or waits for participants that never come.
        """
        for published in self.coordinator.published():
            self._published(published.view.number)
        for place in self.coordinator.places():
            self._give(place)
        while (now := self._moved()).round is not None:
            view = now.round
            if now.run_state == "FAILED":
                raise SimulationError(f"round {view.number} could not be aggregated: {now.reason}")
            if view.state == "AGGREGATING":
                self._aggregate(view)
                continue
            if view.state == "COLLECTING":
                self._begin(view)
            self._wait(view, now)
        while self._deliveries:
            self._discard(self._deliveries.take())
        if now.run_state != "COMPLETED":
            raise SimulationError(f"the run is {now.run_state}: {now.reason}")

    def _moved(self) -> Snapshot:
        """The run, whose round has moved where that was due."""
        now = self.coordinator.snapshot()
        if now.round is not None and now.round.state == "COLLECTING" and not now.why:
            now = self.coordinator.poll([])
        if now.round is not None and now.round.state == "OPEN":
            now = self.coordinator.poll(self._present(now.round))
        return now

    def _present(self, view: RoundView) -> list[str]:
        """The client ids of everybody who asks for work while a round is open."""
        if view.state != "OPEN":
            return []
        key = view.number, view.attempt, self._waits(view)
        if self._there[0] != key:
            seen = (one for one in self.participants.values() if one.part.seen)
            self._there = key, [one.name for one in seen if self.timing.is_available(one, *key)]
        return [self._clients[name] for name in self._there[1] if not self._deliveries.is_busy(name)]

    def _waits(self, view: RoundView) -> int:
        """How often the open round has waited for `gather_timeout`; each time other participants may be available."""
        return int((self.clock.now - view.opened_at) / self._one_wait)

    @property
    def _one_wait(self) -> timedelta:
        return timedelta(seconds=max(self.spec.gather_timeout, 1.0))

    def _begin(self, view: RoundView) -> None:
        """Everybody who was just assigned begins."""
        if self._collecting != (view.number, view.attempt):
            self._collecting = (view.number, view.attempt)
            for place in self.coordinator.places(view.number):
                if place.task.attempt == view.attempt:
                    self._give(place)
        self._deliveries.begin_needed(view)

    def _give(self, place: Place) -> None:
        """Begin a place, or take it up as it was left. Who has an update on its way from an earlier attempt has nothing to do."""
        name, task = place.name, place.task
        if self._given.get((name, task.round)):
            return
        participant = self.participants[name]
        vanishes = self.timing.vanishes(participant, task.round, task.attempt)
        self._given[name, task.round] = not vanishes
        delivery = self._delivery(place, participant)
        if self.tables.has(ParticipantRow, task.round, task.attempt, name):
            return
        if vanishes:
            self.record(place_row(place, "vanished"))
        elif place.failure is not None:
            self.record(place_row(place, "failed", delivery.seconds, reason=place.failure.reason))
        elif place.sent is not None:
            self.record(place_row(place, outcome_of(place, place.counts_in), delivery.seconds, place.sent))
        else:
            self._deliveries.add(delivery)

    def _delivery(self, place: Place, participant: Participant) -> Delivery:
        task, plan = place.task, self.timing.plan(participant, place.task, shortens=self.shortens)
        begun = datetime.fromisoformat(task.deadline) - timedelta(seconds=self.spec.round_timeout)
        trained, arrives = (begun + timedelta(seconds=seconds) for seconds in (plan.trained, plan.arrived))
        over = (
            place.open_upload is not None or trained < self.clock.now
        )  # that event: the simulation was killed after it
        job = TrainingJob(place.name, task, self.coordinator.file(task.adapter.sha256), plan.max_steps)
        at = arrives if over else trained
        return Delivery(at, place.name, place, trained, arrives, plan.arrived, job, place.open_upload)

    def _wait(self, view: RoundView, now: Snapshot) -> None:
        """Jump to the next event: an update arrives, time alone moves the round, or participants become available."""
        arrives, until = self._deliveries.next_at(), now.until or self._next_wait(view, now)
        if arrives is not None and (until is None or arrives < until):
            self.clock.advance_to(arrives)
            if view.state == "OPEN":  # the others still ask for work when it comes
                self.coordinator.poll(self._present(view))
            self._send(self._deliveries.take(), view)
        elif until is not None:
            self.clock.advance_to(until)
        else:
            raise SimulationError(self._never(view, now))

    def _next_wait(self, view: RoundView, now: Snapshot) -> datetime | None:
        """When others may be available for an open round that too few are present for; None: never."""
        if view.state != "OPEN" or now.run_state != "RUNNING" or self.timing.timing.available == 1:
            return None
        waits, everybody = self._waits(view) + 1, len(self._clients) - view.failed
        if everybody < self.spec.min_clients or waits > MOST_WAITS:
            return None
        return view.opened_at + waits * self._one_wait

    def _never(self, view: RoundView, now: Snapshot) -> str:
        failed = [place for place in self.coordinator.places(view.number) if place.failure is not None]
        first = f" {failed[0].name} failed: {failed[0].failure.reason}" if failed and failed[0].failure else ""
        return (
            f"round {view.number} does not go on. {now.why}{first} Lower run.min_clients or run.min_updates, raise "
            "timing.available, or mend what fails"
        )

    def _send(self, delivery: Delivery, view: RoundView) -> None:
        """An update is announced, or arrives; or it is too late, or its training fails. `view` is the run's round now."""
        client, number, sending = delivery.place.client, delivery.round, self.coordinator.sending
        in_time = number == view.number and view.deadline is not None and self.clock.now < view.deadline
        if delivery.upload is None and not in_time and not sending.is_taken(number):
            self._discard(delivery)
            return
        if delivery.at < delivery.arrives and self._is_hopeless(delivery):
            self._deliveries.add(replace(delivery, at=delivery.arrives))
            return
        try:
            trained = self._deliveries.train(delivery).result()
        except (TrainingError, ClientError) as error:
            self._fail(delivery, error)
            return
        upload = delivery.upload or sending.announce(client, number, trained.upload)
        if upload is not None and delivery.at < delivery.arrives:
            self._deliveries.add(replace(delivery, at=delivery.arrives, upload=upload))
            return
        receipt = None if upload is None else sending.deliver(client, number, upload, trained.file)
        trained.file.unlink(missing_ok=True)
        if receipt is None:
            self._discard(delivery, trained)
        else:
            outcome = outcome_of(delivery.place, receipt.counts_in)
            self.record(place_row(delivery.place, outcome, delivery.seconds, trained.upload, trained.cpu_seconds))

    def _is_hopeless(self, delivery: Delivery) -> bool:
        """Whether the round will have its updates before this one arrives, and takes no late ones: it need not be trained."""
        view = self.coordinator.snapshot().round
        if self.spec.late_updates != "discard" or view is None or view.state != "COLLECTING":
            return False
        end = self._deliveries.end_by_count(view)
        return end is not None and end < delivery.arrives

    def _discard(self, delivery: Delivery, trained: TrainedUpdate | None = None) -> None:
        upload, cpu_seconds = (None, 0.0) if trained is None else (trained.upload, trained.cpu_seconds)
        self.record(place_row(delivery.place, "discarded", delivery.seconds, upload, cpu_seconds))

    def _fail(self, delivery: Delivery, error: Exception) -> None:
        """Report the failure as an agent does; here its own words may be told."""
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS] or type(error).__name__
        failure = Failure(attempt=delivery.place.task.attempt, kind=failure_kind(error), reason=reason)
        self.coordinator.sending.fail(delivery.place.client, delivery.round, failure)
        self.record(place_row(delivery.place, "failed", delivery.seconds, reason=reason))

    def _aggregate(self, view: RoundView) -> None:
        if view.lease_until is not None:  # it failed before, and is tried again then
            self.clock.advance_to(view.lease_until)
        self.coordinator.aggregate()
        after = self.coordinator.snapshot().round
        if after is None or after.number != view.number:
            self._published(view.number)

    def _published(self, number: int) -> None:
        if not self.tables.has(RoundRow, number):
            published = self.coordinator.published_round(number)
            self.record(round_row(published, time.monotonic() - self.began))
        self.evaluations.begin(number)
