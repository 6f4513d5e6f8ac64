"""A federated problem with a known answer: linear regression on a planted low-rank matrix, every participant at its own rank.

y = W* x + noise, with W* = U diag(sigma) V^T of rank 16, sigma_j in proportion to 0.8^j. Every participant has Gaussian inputs
of its own, takes ten AdamW steps a round on both factors of the slice it was served, from its float32 values, and sends them
back; the coordinator's own strategies make the next global update D. Deterministic: a seed gives the same rounds.

What `flexlora` cannot do better than, once everyone has found its optimum: the best a participant of rank r can send is the
first r terms of W*, and the average of those is U diag(c_j sigma_j) V^T, with c_j the weight share of ranks >= j. Its
distance from W* is `floor`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.lib.svd.matrices import dense, geometric, orthonormal
from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy

D_OUT, D_IN, RANK, DECAY, NORM = 48, 64, 16, 0.8, 4.0
RANKS = (2, 4, 8, 16)
EXAMPLES = 200
SCALING = 1.0
STEPS = 10
DTYPE = torch.float32


@dataclass(frozen=True)
class Participant:
    """X (n, k) and Y (n, d): its private examples."""

    rank: int
    X: Tensor
    Y: Tensor


@dataclass(frozen=True)
class Planted:
    """W* (d, k) float64, and who learns it."""

    seed: int
    W: Tensor
    participants: tuple[Participant, ...]


def planted(seed: int, ranks: Sequence[int] = RANKS, noise: float = 0.0, examples: int = EXAMPLES) -> Planted:
    """W* of norm 4, and `examples` of each participant; `noise`: the standard deviation of each label's error."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (orthonormal(size, RANK, generator) for size in (D_OUT, D_IN))
    W = (U * sigma()) @ V.mT
    return Planted(seed, W, tuple(_participant(rank, W, noise, examples, generator) for rank in ranks))


def sigma() -> Tensor:
    """W*'s singular values."""
    return geometric(RANK, DECAY, NORM)


def _participant(rank: int, W: Tensor, noise: float, examples: int, generator: torch.Generator) -> Participant:
    X = torch.randn(examples, D_IN, generator=generator)
    errors = torch.randn(examples, D_OUT, generator=generator)
    return Participant(rank, X, X @ W.mT.float() + noise * errors)


def floor(ranks: Sequence[int] = RANKS) -> float:
    """|W* - U diag(c_j sigma_j) V^T| / |W*|: where `flexlora` ends if everyone finds its own optimum in every round."""
    lost = torch.tensor([sum(rank <= j for rank in ranks) / len(ranks) for j in range(RANK)], dtype=torch.float64)
    return float((lost * sigma()).norm()) / NORM


def learned(
    name: str,
    problem: Planted,
    rounds: int,
    learning_rate: float,
    present: Callable[[int, int], bool] = lambda number, rank: True,
) -> Iterator[float]:
    """|D - W*| / |W*| of the global update after each round of strategy `name`; `present`: who takes part, by round and rank."""
    factors = initial_factors(D_OUT, D_IN, max(p.rank for p in problem.participants), problem.seed, "W", DTYPE)
    for number in range(rounds):
        taking_part = [p for p in problem.participants if present(number, p.rank)]
        updates = [trained(p, factors, learning_rate, 1 / len(taking_part)) for p in taking_part]
        factors = strategy(name).aggregate(updates, factors, DTYPE).factors
        yield float((dense(factors) - problem.W).norm() / problem.W.norm())


def trained(who: Participant, factors: GlobalFactors, learning_rate: float, weight: float) -> Update:
    """What the participant sends: its slice after ten AdamW steps on |s X A^T B^T - Y|^2 / 2n."""
    A, B = (x.clone().requires_grad_() for x in slice_factors(factors, who.rank, SCALING, DTYPE))
    optimizer = torch.optim.AdamW([A, B], lr=learning_rate, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (SCALING * who.X @ A.mT @ B.mT - who.Y).square().sum() / (2 * len(who.X))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Update(A.detach(), B.detach(), SCALING, weight, SCALING)
