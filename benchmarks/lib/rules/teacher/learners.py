"""Local training of many participants at once: their factors padded to one rank and stacked, one batched product for all.

Padding needs no mask: where a column of B and its row of A are both zero, so are their gradients, and AdamW without weight
decay leaves them at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, pad

from benchmarks.lib.rules.rule import Start

STEPS, BATCH = 20, 32


@dataclass(frozen=True)
class Layer:
    """One layer of N learners. base: frozen (N, d, k). A (N, r, k) and B (N, d, r): what is trained on top of it."""

    base: Tensor
    A: Tensor
    B: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.base.mT + (x @ self.A.mT) @ self.B.mT


def layer(weights: Sequence[Tensor], starts: Sequence[Start], rank: int) -> Layer:
    """One layer from each learner's weight (d, k) and start, at the rank that the largest of them trains."""
    base = torch.stack([_below(weight, start) for weight, start in zip(weights, starts, strict=True)])
    A = torch.stack([pad(start.A, (0, 0, 0, rank - len(start.A))) for start in starts])
    B = torch.stack([pad(start.B, (0, rank - len(start.A))) for start in starts])
    return Layer(base, A, B)


def train(
    layers: Sequence[Layer], inputs: Tensor, labels: Tensor, rate: float, kinds: Sequence[str]
) -> list[tuple[Tensor, Tensor]]:
    """A and B of each layer after the steps of AdamW; inputs (N, steps * batch, width), labels (N, steps * batch).

    kinds: which of the factors "A" and "B" are trained.
    """
    parameters = [getattr(each, kind).requires_grad_() for each in layers for kind in kinds]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
    for x, y in zip(torch.split(inputs, BATCH, 1), torch.split(labels, BATCH, 1), strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(_logits(layers, x).flatten(0, 1), y.flatten(), reduction="sum") / BATCH
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [(each.A.detach(), each.B.detach()) for each in layers]


def _logits(layers: Sequence[Layer], x: Tensor) -> Tensor:
    for each in layers[:-1]:
        x = gelu(each(x))
    return layers[-1](x)


def _below(weight: Tensor, start: Start) -> Tensor:
    for A, B in start.frozen:
        weight = weight + B @ A
    return weight
