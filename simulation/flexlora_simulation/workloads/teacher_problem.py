"""A federated problem of known answer: a frozen three-layer network whose weights a teacher changes, at rank 16 in each layer.

Inputs come from ten Gaussian clusters, which participants see in proportions of their own (Dirichlet 0.3); labels are drawn
from the teacher's softmax at a temperature. Measured: how often the student's most likely class is the teacher's, on the
even mixture of clusters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu

WIDTH, CLASSES, RANK, DECAY = 64, 20, 16, 0.5
CLUSTERS, SKEW, MEASURED = 10, 0.3, 4000
SHAPES = ((WIDTH, WIDTH), (WIDTH, WIDTH), (CLASSES, WIDTH))
Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Kind:
    """examples: of each participant. temperature: of the softmax that their labels are drawn from."""

    examples: int
    temperature: float


KINDS: Mapping[str, Kind] = {"rich": Kind(1024, 0.1), "noisy": Kind(128, 0.5)}


@dataclass(frozen=True)
class Problem:
    """One seed. base: the frozen weights. inputs (participants, examples, width), labels (participants, examples).

    measured, answers: the inputs (n, width) and the teacher's classes (n,) of the split.
    """

    seed: int
    base: tuple[Tensor, ...]
    inputs: Tensor
    labels: Tensor
    measured: Tensor
    answers: Tensor


def problem(seed: int, kind: Kind, participants: int, split: Split) -> Problem:
    """The problem of one seed; those of `validation` and of `test` have nothing in common."""
    generator = _generator(seed, split)
    base, teacher = _networks(generator)
    centres = torch.randn(CLUSTERS, WIDTH, generator=generator)
    shares = torch._sample_dirichlet(torch.full((participants, CLUSTERS), SKEW), generator)
    inputs = _inputs(centres, shares, kind.examples, generator)
    chances = (forward(inputs, teacher) / kind.temperature).softmax(-1)
    labels = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(participants, kind.examples)
    measured = _inputs(centres, torch.ones(1, CLUSTERS), MEASURED, generator)[0]
    return Problem(seed, base, inputs, labels, measured, forward(measured, teacher).argmax(-1))


def networks(seed: int, split: Split) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The frozen weights and the teacher's, of one seed's problem."""
    return _networks(_generator(seed, split))


def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The network's logits (..., classes)."""
    for weight in weights[:-1]:
        x = gelu(x @ weight.mT)
    return x @ weights[-1].mT


def _generator(seed: int, split: Split) -> torch.Generator:
    return torch.Generator().manual_seed(2 * seed + (split == "test"))


def _networks(generator: torch.Generator) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    base = tuple(1.4 / math.sqrt(k) * torch.randn(d, k, generator=generator) for d, k in SHAPES)
    return base, tuple(weight + _change(weight, generator) for weight in base)


def _change(weight: Tensor, generator: torch.Generator) -> Tensor:
    """As long as the weight, of rank 16, the singular values in proportion to j^-0.5."""
    U, V = (
        torch.linalg.qr(torch.randn(size, RANK, generator=generator, dtype=torch.float64)).Q.float()
        for size in weight.shape
    )
    change = (U * torch.arange(1, RANK + 1) ** -DECAY) @ V.mT
    as_long: Tensor = change / change.norm() * weight.norm()
    return as_long


def _inputs(centres: Tensor, shares: Tensor, count: int, generator: torch.Generator) -> Tensor:
    cluster = torch.multinomial(shares, count, replacement=True, generator=generator)
    return centres[cluster] + torch.randn(*cluster.shape, WIDTH, generator=generator)
