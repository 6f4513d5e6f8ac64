"""The evaluations of published adapters: begun when a round is published, recorded as they end."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import held_ranks
from flexlora_simulation.engine.coordinator import Coordinator
from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob, Executor
from flexlora_simulation.experiment import Evaluation
from flexlora_simulation.population.participants import Participant
from flexlora_simulation.population.resources import rank_pattern
from flexlora_simulation.results.tables import EvaluationRow, Row, Tables

LAST = "loss"  # every evaluation gives it; it is recorded last, and says that the others are there


@dataclass
class Evaluations:
    """What is measured in one experiment. `record` takes each figure; `tables` says which there are already."""

    evaluation: Evaluation
    spec: RunSpec
    coordinator: Coordinator
    executor: Executor
    participants: Mapping[str, Participant]
    tables: Tables
    record: Callable[[Row], None]
    _running: "list[tuple[EvaluationJob, str, Future[Evaluated]]]" = field(default_factory=list)

    def begin(self, number: int) -> None:
        """Begin those of a round that was just published, if it is one that is measured."""
        self._take_finished()
        if number % self.evaluation.every and number != self.spec.rounds:
            return
        for rank, pattern, on, participant in self._wanted():
            if not self.tables.has(EvaluationRow, number, on, participant, rank, LAST):
                slice = self.coordinator.slice(number, rank, pattern)
                job = EvaluationJob(self.spec, number, rank, slice, participant or on, pattern)
                self._running.append((job, on, self.executor.evaluate(job)))

    def finish(self) -> None:
        """Wait for all, and record them."""
        for _, _, future in self._running:
            future.exception()
        self._take_finished()

    def _wanted(self) -> list[tuple[int, dict[str, int], str, str]]:
        """Rank and pattern, on what, and whose; held-out examples are measured at what their participant is served."""
        ranks = self.evaluation.ranks
        if ranks == "largest":
            ranks = (self.spec.largest_rank,)
        elif ranks == "all":
            ranks = tuple(sorted(self.spec.ranks))
        wanted: list[tuple[int, dict[str, int], str, str]] = [
            (rank, {}, on, "") for on in self.evaluation.on if on != "heldout" for rank in ranks
        ]
        if "heldout" in self.evaluation.on:
            for one in self.participants.values():
                if one.part.heldout:
                    resource = one.resource
                    own = rank_pattern(resource, self.spec.modules)
                    wanted.append((*held_ranks(resource.rank, own, resource.hold_rank), "heldout", one.name))
        return wanted

    def _take_finished(self) -> None:
        ended = [each for each in self._running if each[2].done()]
        self._running = [each for each in self._running if not each[2].done()]
        for job, on, future in ended:
            evaluated = future.result()
            for metric, value in sorted(evaluated.metrics.items(), key=lambda item: item[0] == LAST):
                participant = job.on if on == "heldout" else ""
                examples = evaluated.examples_of.get(metric, evaluated.examples)
                row = EvaluationRow(job.round, on, participant, job.rank, metric, value, examples)  # type: ignore[arg-type]
                self.record(row)
