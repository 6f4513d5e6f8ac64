"""Chooses the largest rank whose round fits memory and deadline, with the fastest way to compute it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from flexlora_client.training.fitting.estimate import Estimate, line
from flexlora_client.training.fitting.workload import Workload

Verdict = Literal["fits", "too slow", "too large"]
TRANSFER_BYTES_PER_S = 2.5e6  # of the slice down and the update up, where nothing is known of the line
# A slice is read and put into the model to evaluate it, to train it, to evaluate what was trained; writing takes as long
PLACINGS = 4
BYTES_PER_FROZEN = (
    8  # of a number that is held and not trained: in float32, and once more while it is placed or evaluated
)


@dataclass(frozen=True)
class Option:
    """One way to take part, and what it is predicted to take."""

    rank: int
    hold_rank: int  # of the slice served, of which the first directions are trained
    micro_batch: int
    gradient_checkpointing: bool
    peak_bytes: int
    seconds: float  # of a round, transfers included
    transfer_seconds: float
    verdict: Verdict

    @property
    def held(self) -> int | None:
        """The rank to hold, for a declaration; None where it is the one that is trained."""
        return self.hold_rank if self.hold_rank > self.rank else None

    def ranks(self) -> str:
        """Both ranks, for people."""
        return f"rank {self.rank}" + ("" if self.held is None else f", holding {self.hold_rank},")


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
        head = f"{'rank':>5} {'hold':>5} {'micro-batch':>12} {'checkpointing':>14} {'peak GiB':>9} {'min a round':>12}"
        lines = [head + f"   (memory {self.bounds.memory / 2**30:.2f} GiB, {self.bounds.seconds / 60:.1f} min)"]
        for option in self.options:
            verdict = "chosen" if option == self.chosen else option.verdict
            checkpointing = "yes" if option.gradient_checkpointing else "no"
            lines.append(
                f"{option.rank:>5} {option.hold_rank:>5} {option.micro_batch:>12} {checkpointing:>14} "
                f"{option.peak_bytes / 2**30:>9.2f} "
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

    def option(self, size: "Size", micro_batch: int, checkpointing: bool, work: Workload) -> Option:
        """The option, not judged yet. A frozen direction takes no longer than a trained one, but for the optimizer's step."""
        estimate, batches = self.estimates[checkpointing], work.training(micro_batch)
        peak = estimate.peak(size.trained, batches.largest) + BYTES_PER_FROZEN * (size.held - size.trained)
        seconds = batches.count * estimate.backward(size.held, batches.mean)
        seconds += len(work.steps) * estimate.update(size.trained) + PLACINGS * line(sorted(self.placing), size.held)
        heldout = work.evaluation(micro_batch)
        seconds += 2 * heldout.count * estimate.forward(size.held, heldout.mean)
        seconds += sum(estimate.answers(size.held, len(batch), max(batch)) for batch in work.answering(micro_batch))
        transfer = work.bytes_per_number * (size.held + size.trained) / TRANSFER_BYTES_PER_S
        ranks = size.rank, size.hold_rank
        return Option(*ranks, micro_batch, checkpointing, round(peak), seconds + transfer, transfer, "fits")


def judged(option: Option, bounds: Bounds) -> Option:
    """The option with its verdict."""
    verdict: Verdict = "fits"
    if option.peak_bytes > bounds.memory:
        verdict = "too large"
    elif option.seconds > bounds.seconds:
        verdict = "too slow"
    return Option(**asdict(option) | {"verdict": verdict})


@dataclass(frozen=True)
class Size:
    """A rank to train and one to hold, and how many numbers of the adapter are trained and are held."""

    rank: int
    hold_rank: int
    trained: int
    held: int


def choose(
    sizes: Mapping[int, int],
    micro_batches: Sequence[int],
    costs: Costs,
    work: Workload,
    bounds: Bounds,
    held: Mapping[int, int] = MappingProxyType({}),
) -> Choice:
    """The choice among ranks and micro-batches; then the largest rank to hold that fits too.

    `sizes`: the parameters of each rank's adapter; `held`: of those that may be held, none where nothing more may be. The rank is
    chosen first: a direction that is trained is worth more than one that is held.
    """

    def fastest(size: Size) -> Option:
        options = [
            judged(costs.option(size, micro_batch, checkpointing, work), bounds)
            for micro_batch in micro_batches
            for checkpointing in costs.estimates
        ]
        return min(options, key=_preference)

    best = [fastest(Size(rank, rank, sizes[rank], sizes[rank])) for rank in sorted(sizes, reverse=True)]
    chosen = next((option for option in best if option.verdict == "fits"), None)
    if chosen is None:
        return Choice(tuple(best), None, bounds)
    larger = sorted((rank for rank in held if rank > chosen.rank), reverse=True)
    holding = (fastest(Size(chosen.rank, rank, sizes[chosen.rank], held[rank])) for rank in larger)
    final = next((option for option in holding if option.verdict == "fits"), chosen)
    return Choice(tuple(final if option == chosen else option for option in best), final, bounds)


def _preference(option: Option) -> tuple[bool, float]:
    """The fastest of those that memory allows; where it allows none, the smallest."""
    too_large = option.verdict == "too large"
    return too_large, option.peak_bytes if too_large else option.seconds
