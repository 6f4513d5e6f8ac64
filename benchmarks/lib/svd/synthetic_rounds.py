"""Synthetic rounds like those of a running federation: the participants' ranks, and their uploads of one module."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.lib.svd.matrices import geometric, orthonormal
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_simulation.experiment import SHARES, TYPES, Resource
from flexlora_simulation.population.resources import shared_out

MIXED = "mixed"
CYCLE = (4, 8, 16, 32, 64)
DATA = ("federation", "flat")
DECAY = math.exp(-0.05)  # of the global update's singular values, from one to the next
DRIFT, NOISE = 0.1, 0.3  # of the round's common change, and of each participant's own, relative to the global update


def ranks_of(mix: str, participants: int, mlp: bool) -> list[int]:
    """Each participant's rank: of the FlexLoRA paper's four types, in attention layers or in MLPs, in the shares of the mix."""
    if mix == MIXED:
        return [CYCLE[i % len(CYCLE)] for i in range(participants)]
    resources = [Resource(rank=rank, share=share) for (_, rank), share in zip(TYPES, SHARES[mix], strict=True)]
    return [TYPES[kind][mlp] for kind in shared_out(resources, participants)]


def largest(mix: str) -> int:
    """The rank of the global update, r_max."""
    return max(CYCLE) if mix == MIXED else max(max(kind) for kind in TYPES)


@dataclass(frozen=True)
class Round:
    """One module's uploads, and the global update they were trained from, B V with V^T (r_max, k); B = 0 with flat data."""

    stack: Stack
    V: Tensor
    B: Tensor


def make(d: int, k: int, ranks: Sequence[int], r_max: int, data: str, seed: int = 0) -> Round:
    """A seeded round: `federation`, or `flat`: i.i.d. Gaussian factors, whose spectrum no iteration likes."""
    generator = torch.Generator().manual_seed(seed)
    V = orthonormal(k, r_max, generator).mT.float().contiguous()
    published = torch.zeros(d, r_max)
    if data == "federation":
        U, s = orthonormal(d, r_max, generator).float(), geometric(r_max, DECAY).float()
        published, each = U * s, _federation(U, s, V, ranks, generator)
    else:
        each = _flat(d, k, ranks, generator)
    return Round(Stack([Term(B, A, 1 / len(ranks)) for B, A in each]), V, published)


def _federation(
    U: Tensor, s: Tensor, V: Tensor, ranks: Sequence[int], generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Everyone's slice of U diag(s) V^T, moved by a change that all share and by one of its own."""
    (d, r_max), k = U.shape, V.shape[1]
    B = (U + DRIFT * _columns(d, r_max, generator)) * s
    A = V + DRIFT * _columns(k, r_max, generator).mT
    return [
        (
            B[:, :r] + NOISE * s[:r] * _columns(d, r, generator),
            A[:r] + NOISE * _columns(k, r, generator).mT.contiguous(),
        )
        for r in ranks
    ]


def _flat(d: int, k: int, ranks: Sequence[int], generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    return [(_columns(d, r, generator), _columns(k, r, generator).mT.contiguous()) for r in ranks]


def _columns(length: int, count: int, generator: torch.Generator) -> Tensor:
    """Gaussian columns of norm about 1."""
    return torch.randn(length, count, generator=generator).div_(math.sqrt(length))
