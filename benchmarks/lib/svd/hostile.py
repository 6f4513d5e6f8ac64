"""Rounds of one module with hostile participants among honest ones: how the honest train, what the hostile send."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.lib.svd.matrices import geometric, orthonormal
from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors

D_OUT, D_IN = 256, 320
RANKS = (4, 8, 16, 32) * 5
SCALING = 2.0
HOSTILE = 3
LEARNING_RATE = 0.1
DTYPE = torch.float32

# What a hostile participant sends in the place of S + D: of the slice it was served and its honest change, both dense.
Attack = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def multiplied(c: float) -> Attack:
    """S + c D."""

    def attack(S: Tensor, D: Tensor, generator: torch.Generator) -> Tensor:
        return S + c * D

    return attack


def random_change(S: Tensor, D: Tensor, generator: torch.Generator) -> Tensor:
    """S + a random matrix as long as D."""
    noise = torch.randn(D.shape, generator=generator, dtype=D.dtype)
    change: Tensor = noise * (D.norm() / noise.norm())
    return S + change


ATTACKS: Mapping[str, Attack] = {
    "boosted x100": multiplied(100.0),
    "sign flipped": multiplied(-1.0),
    "flipped x10": multiplied(-10.0),
    "random": random_change,
}


@dataclass(frozen=True)
class Task:
    """The gradient all share, every participant's weight, and who is hostile."""

    gradient: Tensor
    weights: tuple[float, ...]
    hostile: frozenset[int]


def task(generator: torch.Generator) -> Task:
    """A gradient of rank 16 and norm 1; 50 to 500 examples each; three of the participants hostile."""
    shared = decaying(generator, 16, 0.8)
    examples = torch.randint(50, 501, (len(RANKS),), generator=generator).tolist()
    hostile = torch.randperm(len(RANKS), generator=generator)[:HOSTILE].tolist()
    return Task(shared.B @ shared.A, tuple(n / sum(examples) for n in examples), frozenset(hostile))


def decaying(generator: torch.Generator, rank: int, decay: float) -> GlobalFactors:
    """Random singular vectors, singular values in proportion to decay^j, norm 1."""
    U, V = (orthonormal(size, rank, generator) for size in (D_OUT, D_IN))
    return GlobalFactors((U * geometric(rank, decay, norm=1.0)).float(), V.mT.contiguous().float())


def trained(given: Task, previous: GlobalFactors, noise: float, generator: torch.Generator) -> list[Update]:
    """Everyone's honest update: a gradient step on both factors of W = s B A, `noise` the norm of its own gradient."""
    updates = []
    for rank, weight in zip(RANKS, given.weights, strict=True):
        own = torch.randn(D_OUT, D_IN, generator=generator)
        step = LEARNING_RATE * SCALING * (given.gradient + noise * own / own.norm())
        A, B = slice_factors(previous, rank, SCALING, DTYPE)
        updates.append(Update(A - B.mT @ step, B - step @ A.mT, SCALING, weight, SCALING))
    return updates


def attacked(
    honest: Sequence[Update], given: Task, previous: GlobalFactors, attack: Attack, generator: torch.Generator
) -> list[Update]:
    """The same round with the hostile ones' updates in the place of their honest ones."""
    return [
        forged(update, previous, attack, generator) if index in given.hostile else update
        for index, update in enumerate(honest)
    ]


def forged(update: Update, previous: GlobalFactors, attack: Attack, generator: torch.Generator) -> Update:
    """What the attack makes of an honest update, at its rank: the best approximation."""
    A, B = (x.double() for x in slice_factors(previous, update.rank, SCALING, DTYPE))
    S = SCALING * B @ A
    wanted = attack(S, update.scaling * update.B.double() @ update.A.double() - S, generator)
    U, sigma, Vt = torch.linalg.svd(wanted, full_matrices=False)
    r = update.rank
    return replace(update, A=Vt[:r].float(), B=(U[:, :r] * sigma[:r] / update.scaling).float())
