"""Chooses the largest rank whose round fits memory and deadline, with the fastest way to compute it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flexlora_client.training.fitting.estimate import Estimate, line
from flexlora_client.training.fitting.workload import Workload

Verdict = Literal["fits", "too slow", "too large"]
TRANSFER_BYTES_PER_S = 2.5e6  # of the slice down and the update up, where nothing is known of the line
# A slice is read and put into the model to evaluate it, to train it, to evaluate what was trained; writing takes as long
PLACINGS = 4


@dataclass(frozen=True)
class Option:
    """One way to take part, and what it is predicted to take."""

    rank: int
    micro_batch: int
    gradient_checkpointing: bool
    peak_bytes: int
    seconds: float  # of a round, transfers included
    transfer_seconds: float
    verdict: Verdict


@dataclass(frozen=True)
class Bounds:
    """What a round may take."""

    memory: float  # bytes
    seconds: float


@dataclass(frozen=True)
class Choice:
    """The best option of each rank, largest rank first; `chosen` is None where no rank fits."""

    options: tuple[Option, ...]
    chosen: Option | None
    bounds: Bounds

    def table(self) -> str:
        """The options for people, a line each."""
        head = f"{'rank':>5} {'micro-batch':>12} {'checkpointing':>14} {'peak GiB':>9} {'min a round':>12}"
        lines = [head + f"   (memory {self.bounds.memory / 2**30:.2f} GiB, {self.bounds.seconds / 60:.1f} min)"]
        for option in self.options:
            verdict = "chosen" if option == self.chosen else option.verdict
            checkpointing = "yes" if option.gradient_checkpointing else "no"
            lines.append(
                f"{option.rank:>5} {option.micro_batch:>12} {checkpointing:>14} {option.peak_bytes / 2**30:>9.2f} "
                f"{option.seconds / 60:>12.2f}   {verdict}"
            )
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """The options for programs."""
        return [asdict(option) | {"chosen": option == self.chosen} for option in self.options]


@dataclass(frozen=True)
class Costs:
    """What was measured: estimates without and, where that was needed, with checkpointing; placing a slice."""

    estimates: Mapping[bool, Estimate]  # by gradient checkpointing
    placing: Sequence[tuple[int, float]]  # reading a slice of so many numbers and placing it takes so many seconds

    def option(self, rank: int, parameters: int, micro_batch: int, checkpointing: bool, work: Workload) -> Option:
        """The option, not judged yet."""
        estimate, batches = self.estimates[checkpointing], work.training(micro_batch)
        peak = estimate.peak(parameters, batches.largest)
        seconds = batches.count * estimate.backward(parameters, batches.mean)
        seconds += len(work.steps) * estimate.update(parameters) + PLACINGS * line(sorted(self.placing), parameters)
        held = work.evaluation(micro_batch)
        seconds += 2 * held.count * estimate.forward(parameters, held.mean)
        seconds += sum(estimate.answers(parameters, len(batch), max(batch)) for batch in work.answering(micro_batch))
        transfer = 2 * work.bytes_per_number * parameters / TRANSFER_BYTES_PER_S
        return Option(rank, micro_batch, checkpointing, round(peak), seconds + transfer, transfer, "fits")


def judged(option: Option, bounds: Bounds) -> Option:
    """The option with its verdict."""
    verdict: Verdict = "fits"
    if option.peak_bytes > bounds.memory:
        verdict = "too large"
    elif option.seconds > bounds.seconds:
        verdict = "too slow"
    return Option(**asdict(option) | {"verdict": verdict})


def choose(
    sizes: Mapping[int, int], micro_batches: Sequence[int], costs: Costs, work: Workload, bounds: Bounds
) -> Choice:
    """The choice among ranks (`sizes` are their adapters' parameters) and micro-batches."""
    best = []
    for rank in sorted(sizes, reverse=True):
        options = [
            judged(costs.option(rank, sizes[rank], micro_batch, checkpointing, work), bounds)
            for micro_batch in micro_batches
            for checkpointing in costs.estimates
        ]
        best.append(min(options, key=_preference))
    return Choice(tuple(best), next((option for option in best if option.verdict == "fits"), None), bounds)


def _preference(option: Option) -> tuple[bool, float]:
    """The fastest of those that memory allows; where it allows none, the smallest."""
    too_large = option.verdict == "too large"
    return too_large, option.peak_bytes if too_large else option.seconds
