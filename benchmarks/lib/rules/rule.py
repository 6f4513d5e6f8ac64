"""The rules compared: the server's own strategies with their options, at the ranks of a population, and who trains what.

Nothing here computes a global update: `Rule.aggregate` calls the strategy that the coordinator would call, and `start` cuts
the slice that the coordinator would serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.strategies.registry import NO_OPTIONS, Strategy, strategies, strategy
from flexlora_shared.messages.strategy_options import StrategyOptions

DTYPE = torch.float32  # served
PAPER, RESIDUAL, BUCKET, ORACLE = "flexlora", "flexlora-residual", "bucket", "oracle"


@dataclass(frozen=True)
class Start:
    """What a participant trains, A (r, k) and B (d, r), on top of `frozen`: factors (A, B) under it, of any rank."""

    A: Tensor
    B: Tensor
    frozen: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True, eq=False)
class Rule:
    """A strategy as one row of the tables.

    ranks: everyone's own, or everyone at the smallest or the largest of the population.
    whole_view: participants hold the global update at the largest rank; the directions beyond their own are frozen under
    those they train, and what they use afterwards is the whole.
    """

    name: str
    strategy: str
    options: StrategyOptions = NO_OPTIONS
    ranks: Literal["own", "smallest", "largest"] = "own"
    whole_view: bool = False

    def ranks_of(self, population: Sequence[int]) -> list[int]:
        """The rank that each participant trains."""
        if self.ranks == "own":
            return list(population)
        return [min(population) if self.ranks == "smallest" else max(population)] * len(population)

    def trained(self, round: int) -> tuple[str, ...]:
        """Which of the factors, "A" and "B", participants train in this round, from 1."""
        kind = strategy(self.strategy).trained_in(round)
        return (kind,) if kind in ("A", "B") else ("A", "B")

    def start(self, factors: GlobalFactors, rank: int, scaling: float, generator: torch.Generator) -> Start:
        """What one participant of `rank` starts a round from; `generator`: of the fresh adapter, where the rule wants one."""
        A, B = slice_factors(factors, rank, scaling, DTYPE)
        if strategy(self.strategy).agents_train == "fresh":
            bound = A.shape[1] ** -0.5  # as PEFT draws lora_A
            fresh = torch.empty(A.shape).uniform_(-bound, bound, generator=generator)
            return Start(fresh, torch.zeros_like(B), ((A, B),))
        if self.whole_view and rank < len(factors.A):
            whole_A, whole_B = slice_factors(factors, len(factors.A), scaling, DTYPE)
            return Start(A, B, ((whole_A[rank:], whole_B[:, rank:]),))
        return Start(A, B)

    def aggregate(self, updates: Sequence[Update], previous: GlobalFactors) -> GlobalFactors:
        """The next global update, by the server's strategy."""
        return strategy(self.strategy).aggregate(updates, previous, DTYPE, options=self.options).factors

    def used_rank(self, rank: int, largest: int) -> int:
        """The rank of the global update that a participant of `rank` uses after the round."""
        return largest if self.whole_view else rank


def rules() -> tuple[Rule, ...]:
    """Every row: the registry's strategies, their options, the whole view, and between which two they ought to be."""
    return (
        Rule(BUCKET, "fedavg", ranks="smallest"),
        *(registered(strategy(name)) for name in strategies() if name != "fedavg"),
        *(Rule(f"leak {g:g}", RESIDUAL, StrategyOptions(leak=g)) for g in (0.03, 0.1, 0.3)),
        *(Rule(f"shrink {kappa:g}", RESIDUAL, StrategyOptions(shrink=kappa)) for kappa in (0.3, 0.5)),
        Rule("energy 0.95", PAPER, StrategyOptions(energy=0.95)),
        Rule("residual, energy 0.95", RESIDUAL, StrategyOptions(energy=0.95)),
        Rule("view", RESIDUAL, whole_view=True),
        Rule("view, leak 0.1", RESIDUAL, StrategyOptions(leak=0.1), whole_view=True),
        Rule(ORACLE, PAPER, ranks="largest"),
    )


def registered(found: Strategy) -> Rule:
    """A strategy without options; one that serves one rank for all has the smallest, which everybody affords."""
    return Rule(found.name, found.name, ranks="smallest" if found.one_rank else "own")


def chosen(names: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of these names, in this order; all for none. Raises: ValueError, with the names there are."""
    known = {rule.name: rule for rule in rules()}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no rule {name!r}: choose from {', '.join(known)}")
    return tuple(known[name] for name in names) or tuple(known.values())


def tail_energy(modules: Sequence[GlobalFactors], rank: int) -> float:
    """The share of |B A|^2 beyond the first `rank` directions, the mean of the modules; 0 where nothing is learned."""
    energy = [[float((B @ A).square().sum()) for B, A in ((m.B, m.A), (m.B[:, rank:], m.A[rank:]))] for m in modules]
    return sum(tail / whole for whole, tail in energy if whole > 0) / len(modules)
