"""What one round of this participant computes: its micro-batches and evaluations, counted in padded tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.store import lengths_of
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.encoding.packing import Units, learnable
from flexlora_client.training.loop.plan import plan_steps
from flexlora_client.training.models.replicas import part_size
from flexlora_shared.messages.runs import RunSpec

ENCODED_AT_MOST = 1000  # of more examples, the lengths of the others are estimated from their characters


@dataclass(frozen=True)
class Batches:
    """Batches of examples: how many, their padded tokens together, and those of the largest."""

    count: int
    tokens: int
    largest: int

    @property
    def mean(self) -> float:
        """Padded tokens of a batch."""
        return self.tokens / self.count if self.count else 0.0


@dataclass(frozen=True)
class Workload:
    """One round; lengths are in tokens."""

    steps: tuple[tuple[int, ...], ...]  # of the examples of each optimizer step, in their order
    batch_size: int
    heldout: tuple[int, ...]  # ascending
    answers: tuple[int, ...]  # most tokens generated for each held-out question that is answered
    bytes_per_number: int  # of the slices that are transferred
    devices: int = 1  # that the micro-batches of a step are dealt to

    @lru_cache(maxsize=64)  # noqa: B019  # lives as long as the choice
    def training(self, micro_batch: int) -> Batches:
        """The micro-batches of training; of several devices the first one's, which has the most to do, and the largest of all."""
        parts: list[Sequence[int]] = []
        own: list[Sequence[int]] = []
        for step in self.steps:
            size = part_size(len(step), micro_batch, self.devices)
            dealt = [step[at : at + size] for at in range(0, len(step), size)]
            parts += dealt
            own += dealt[:: self.devices]
        return replace(_batches(own), largest=_batches(parts).largest)

    def evaluation(self, micro_batch: int) -> Batches:
        """The batches of one evaluation of the held-out loss."""
        starts = range(0, len(self.heldout), micro_batch)
        return _batches([self.heldout[at : at + micro_batch] for at in starts][:: self.devices])

    def answering(self, micro_batch: int) -> list[tuple[int, ...]]:
        """The tokens of the answers, batch by batch."""
        return [self.answers[at : at + micro_batch] for at in range(0, len(self.answers), micro_batch)]

    @property
    def micro_batches(self) -> list[int]:
        """Sizes to choose from, the run's batch size first, then its halves."""
        sizes = [self.batch_size]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        return sizes


def plan_workload(
    encoder: Encoder,
    train: Sequence[Example],
    heldout: Sequence[Example],
    answers: Sequence[int],
    spec: RunSpec,
    devices: int = 1,
) -> Workload:
    """The work of round 1; other rounds shuffle anew and take as long."""
    units = Units(encoder, train)
    lengths = units.lengths if encoder.packing else token_lengths(encoder, train)
    steps = plan_steps(units.lengths, spec.training, 1)
    return Workload(
        tuple(tuple(lengths[index] for index in step) for step in steps),
        spec.training.batch_size,
        tuple(sorted(token_lengths(encoder, heldout))),
        tuple(answers),
        4 if spec.upload_dtype == "float32" else 2,
        devices,
    )


def token_lengths(encoder: Encoder, examples: Sequence[Example]) -> list[int]:
    """Tokens of each example, 1 of an image."""
    stride = -(-len(examples) // ENCODED_AT_MOST) or 1
    known = {index: _tokens(encoder, examples[index]) for index in range(0, len(examples), stride)}
    if stride == 1:
        return list(known.values())
    longest = max(known.values())
    ratio = sum(known.values()) / max(1, sum(examples[index].characters for index in known))
    return [
        known[index] if index in known else min(longest, max(1, round(ratio * characters)))
        for index, characters in enumerate(lengths_of(examples))
    ]


def _tokens(encoder: Encoder, example: Example) -> int:
    return max(1, sum(len(row.ids) for encoded in learnable(encoder, [example]) for row in encoded.sequences))


def _batches(parts: Sequence[Sequence[int]]) -> Batches:
    sizes = [len(part) * max(part) for part in parts]
    return Batches(len(sizes), sum(sizes), max(sizes, default=0))
