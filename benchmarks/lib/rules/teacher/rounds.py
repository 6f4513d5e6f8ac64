"""Rounds of one rule on several seeds of the teacher's problem side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.lib.rules.rule import DTYPE, Rule, tail_energy
from benchmarks.lib.rules.teacher.learners import BATCH, STEPS, layer, train
from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors
from flexlora_simulation.workloads.teacher_problem import SHAPES, Problem, forward

PARTICIPANTS, ROUNDS, MEASURED_ROUNDS, SCALING = 8, 30, 5, 1.0
State = list[GlobalFactors]  # of each layer


@dataclass(frozen=True)
class Outcome:
    """Of one seed, means of the last five rounds; agreement with the teacher in %.

    whole: of the global update at its largest rank. used: of what participants of each rank use. mean: over participants.
    tail: the share of energy above the population's smallest rank.
    """

    whole: float
    used: dict[int, float]
    mean: float
    tail: float


@dataclass
class Seed:
    """One seed on its way: its problem, what draws its participants and batches, and its global update."""

    problem: Problem
    chance: torch.Generator
    state: State


@dataclass(frozen=True)
class Local:
    """One participant of one seed in a round: its rank, and the examples of its batches one after another."""

    rank: int
    inputs: Tensor
    labels: Tensor


def run(
    rule: Rule, population: Sequence[int], rate: float, problems: Sequence[Problem], rounds: int = ROUNDS
) -> list[Outcome]:
    """The outcome on each problem. What is drawn does not depend on the rule: comparisons are paired."""
    ranks = rule.ranks_of(population)
    seeds = [Seed(one, torch.Generator().manual_seed(one.seed), _first(one.seed, max(ranks))) for one in problems]
    measured: list[list[Outcome]] = [[] for _ in seeds]
    for number in range(rounds):
        one_round(rule, ranks, rate, number, seeds)
        if number >= rounds - MEASURED_ROUNDS:
            for found, seed in zip(measured, seeds, strict=True):
                found.append(outcome(rule, population, seed.problem, seed.state))
    return [_mean(each) for each in measured]


def _first(seed: int, rank: int) -> State:
    return [initial_factors(d, k, rank, seed, str(number), DTYPE) for number, (d, k) in enumerate(SHAPES)]


def one_round(rule: Rule, ranks: Sequence[int], rate: float, number: int, seeds: Sequence[Seed]) -> None:
    """Trains all participants of all seeds side by side, and replaces each seed's global update."""
    here = [_local(seed, ranks) for seed in seeds]
    everyone = [(seed, who) for seed, present in zip(seeds, here, strict=True) for who in present]
    fresh = torch.Generator().manual_seed(number)
    layers = []
    for n in range(len(SHAPES)):
        starts = [rule.start(seed.state[n], who.rank, SCALING, fresh) for seed, who in everyone]
        layers.append(layer([seed.problem.base[n] for seed, _ in everyone], starts, max(ranks)))
    inputs, labels = (torch.stack([getattr(who, name) for _, who in everyone]) for name in ("inputs", "labels"))
    trained = train(layers, inputs, labels, rate, rule.trained(number + 1))
    for index, (seed, present) in enumerate(zip(seeds, here, strict=True)):
        uploads = [_updates([who.rank for who in present], A, B, index * PARTICIPANTS) for A, B in trained]
        seed.state = [rule.aggregate(each, previous) for each, previous in zip(uploads, seed.state, strict=True)]


def _local(seed: Seed, ranks: Sequence[int]) -> list[Local]:
    """Who takes part in this round, and on which examples."""
    one = seed.problem
    here = torch.randperm(len(ranks), generator=seed.chance)[:PARTICIPANTS].tolist()
    picked = torch.randint(one.labels.shape[1], (PARTICIPANTS, STEPS * BATCH), generator=seed.chance)
    return [
        Local(ranks[who], one.inputs[who, own], one.labels[who, own]) for who, own in zip(here, picked, strict=True)
    ]


def _updates(ranks: Sequence[int], A: Tensor, B: Tensor, first: int) -> list[Update]:
    """What one seed's participants upload of one layer: without the padding."""
    share = 1 / len(ranks)
    return [Update(A[n, :rank], B[n, :, :rank], SCALING, share, SCALING) for n, rank in enumerate(ranks, first)]


def outcome(rule: Rule, population: Sequence[int], one: Problem, state: State) -> Outcome:
    """What the global update is worth."""
    ranks = rule.ranks_of(population)
    whole = agreement(one, state, max(ranks))
    used = {}
    for own, rank in zip(population, ranks, strict=True):
        if own not in used:
            used[own] = agreement(one, state, rule.used_rank(rank, max(ranks)))
    mean = sum(used[own] for own in population) / len(population)
    return Outcome(whole, used, mean, tail_energy(state, min(population)))


def agreement(one: Problem, state: State, rank: int) -> float:
    """In %, at this rank."""
    weights = [base + factors.B[:, :rank] @ factors.A[:rank] for base, factors in zip(one.base, state, strict=True)]
    return 100 * float((forward(one.measured, weights).argmax(-1) == one.answers).float().mean())


def _mean(each: Sequence[Outcome]) -> Outcome:
    n = len(each)
    used = {rank: sum(one.used[rank] for one in each) / n for rank in each[0].used}
    whole, mean, tail = (sum(getattr(one, name) for one in each) / n for name in ("whole", "mean", "tail"))
    return Outcome(whole, used, mean, tail)
