"""The updates that are on their way in virtual time, and which of them have to be trained.

What a participant trains depends on its slice and its data alone, so trainings run side by side in any order, ahead of virtual
time. One begins only when its update is to count: those that come after their round has ended are not trained in vain.
"""

import heapq
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from flexlora_server.state_machine import RoundView, updates_needed
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.engine.jobs import Executor, TrainedUpdate, TrainingJob
from flexlora_simulation.engine.places import Place


@dataclass(order=True)
class Delivery:
    """An update on its way.

    at: its next event, the announcement or the arrival. upload: its id, from the announcement on. training: None until it has
    begun.
    """

    at: datetime
    participant: str
    place: Place = field(compare=False)
    trained: datetime = field(compare=False)  # when it is announced, where that may matter
    arrives: datetime = field(compare=False)
    seconds: float = field(compare=False)  # from the assignment until it arrives
    job: TrainingJob = field(compare=False)
    upload: str | None = field(compare=False, default=None)
    training: "Future[TrainedUpdate] | None" = field(compare=False, default=None)

    @property
    def round(self) -> int:
        """The round that it is trained for."""
        return self.place.task.round

    @property
    def announced(self) -> datetime:
        """When it was or will be announced."""
        return self.at if self.upload is None else self.trained


@dataclass
class Deliveries:
    """Those on their way, the next one first."""

    spec: RunSpec
    executor: Executor
    _heap: list[Delivery] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, delivery: Delivery) -> None:
        """Put one on its way, or on with its way."""
        heapq.heappush(self._heap, delivery)
        self._busy.add(delivery.participant)

    def next_at(self) -> datetime | None:
        """When the next event is."""
        return self._heap[0].at if self._heap else None

    def take(self) -> Delivery:
        """The next one, whose participant is free again unless it is added again."""
        delivery = heapq.heappop(self._heap)
        self._busy.discard(delivery.participant)
        return delivery

    def is_busy(self, participant: str) -> bool:
        """Whether an update of this participant is on its way."""
        return participant in self._busy

    def train(self, delivery: Delivery) -> "Future[TrainedUpdate]":
        """Begin its training, unless it has begun."""
        if delivery.training is None:
            delivery.training = self.executor.train(delivery.job)
        return delivery.training

    def begin_needed(self, view: RoundView) -> None:
        """Begin every training whose update arrives before the round's end, as far as that can be told now."""
        end = self.end_by_count(view) or self._end_by_time(view)
        late_ones_count = self.spec.late_updates == "next-round"
        for delivery in sorted(each for each in self._heap if each.training is None and each.arrives <= end):
            if delivery.round == view.number or late_ones_count:
                self.train(delivery)

    def end_by_count(self, view: RoundView) -> datetime | None:
        """When a collecting round has the updates it needs, unless participants fail; None: its deadline comes first."""
        missing = max(updates_needed(self.spec, view), self.spec.min_updates) - view.accepted
        arriving = self._in_time(view)
        return arriving[missing - 1] if 0 < missing <= len(arriving) else None

    def _end_by_time(self, view: RoundView) -> datetime:
        assert view.deadline is not None, "a collecting round has a deadline"
        return max([view.deadline, *self._in_time(view)[-1:]])

    def _in_time(self, view: RoundView) -> list[datetime]:
        """When the updates arrive that a collecting round will accept, if nothing but time ends it."""
        deadline = view.deadline
        assert deadline is not None, "a collecting round has a deadline"
        grace = deadline + timedelta(seconds=self.spec.grace)
        return sorted(
            each.arrives
            for each in self._heap
            if each.round == view.number and each.arrives < (grace if each.announced < deadline else deadline)
        )
