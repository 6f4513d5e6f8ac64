"""BANKING77 with a frozen head: 30 participants, half at rank 1 and half at rank 8, ten a round, in this process.

A trained head learns the task by itself, and no rule can be told from another. Here the head is frozen: the 77 intents have
random orthonormal directions, and the encoder must learn to turn its mean token vector towards them, which takes rank.
LoRA is on query and value of every layer. Each intent's questions are dealt by Dirichlet(0.5).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize
from transformers import AutoModel, AutoTokenizer

from benchmarks.banking77 import dirichlet_split
from benchmarks.lib.rules.banking77.encoder import Encoder, LoRA, batch
from benchmarks.lib.rules.rule import DTYPE, Rule, Start, tail_energy
from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors
from flexlora_simulation.workloads.banking77 import Question, read_questions

RANKS = (1,) * 15 + (8,) * 15
ALPHA, SCALING, HEAD_NORM = 0.5, 2.0, 8.0
PARTICIPANTS, ROUNDS, STEPS, BATCH, CLIP = 10, 22, 6, 24, 1.0
EXAMPLES, HELD_OUT, SMALLEST, MAX_LENGTH = 6000, 700, 4, 40
Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Examples:
    """Questions below the first adapter: each one's embeddings (tokens, width); labels (n,)."""

    embedded: tuple[Tensor, ...]
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """The encoder, its frozen head (intents, width), and every question."""

    encoder: Encoder
    head: Tensor
    train: Examples
    test: Examples


@dataclass(frozen=True)
class Federation:
    """One seed: each participant's rank and questions (indices into the training ones), and what is measured on."""

    ranks: tuple[int, ...]
    owned: tuple[tuple[int, ...], ...]
    measured: Examples
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Accuracies in %: of the whole, of the slice of rank 1, and of what a participant of rank 1 uses; energy above rank 1."""

    whole: float
    slice: float
    used: float
    tail: float


def load(data: Path, model: Path, dtype: torch.dtype = torch.float32) -> Task:
    """Reads data and model, and computes the embeddings. Raises: DataError."""
    tokens = AutoTokenizer.from_pretrained(model)
    encoder = Encoder(AutoModel.from_pretrained(model).eval().requires_grad_(False), dtype)
    train, test = (read_questions(data / name) for name in ("train.csv", "test.csv"))
    names = sorted({one.category for one in train})
    number = {name: index for index, name in enumerate(names)}

    def examples(questions: Sequence[Question]) -> Examples:
        ids = (tokens(one.text, truncation=True, max_length=MAX_LENGTH).input_ids for one in questions)
        labels = torch.tensor([number[one.category] for one in questions])
        return Examples(tuple(encoder.embed(torch.tensor(each)) for each in ids), labels)

    noise = torch.randn(encoder.width, len(names), generator=torch.Generator().manual_seed(5))
    head = HEAD_NORM * torch.linalg.qr(noise).Q.mT
    return Task(encoder, head, examples(train), examples(test))


def federation(task: Task, seed: int, split: Split) -> Federation:
    """Deals the questions out; `validation` is measured on training questions that nobody has, `test` on all test ones."""
    chance = random.Random(seed)
    order = chance.sample(range(len(task.train.labels)), len(task.train.labels))
    dealt, rest = order[:EXAMPLES], order[EXAMPLES : EXAMPLES + HELD_OUT]
    labels = [str(int(task.train.labels[index])) for index in dealt]
    parts = dirichlet_split(labels, len(RANKS), ALPHA, SMALLEST, seed)
    owned = tuple(tuple(dealt[index] for index in part) for part in parts)
    held_out = Examples(tuple(task.train.embedded[index] for index in rest), task.train.labels[rest])
    return Federation(tuple(chance.sample(RANKS, len(RANKS))), owned, task.test if split == "test" else held_out, seed)


def run(task: Task, rule: Rule, rate: float, given: Federation, rounds: int = ROUNDS) -> Outcome:
    """All rounds of one rule; deterministic on one thread."""
    ranks = rule.ranks_of(given.ranks)
    width, r_max = task.encoder.width, max(ranks)
    state = [initial_factors(width, width, r_max, given.seed, str(n), DTYPE) for n in range(task.encoder.modules)]
    chance = random.Random(given.seed)
    for number in range(rounds):
        here = chance.sample(range(len(ranks)), PARTICIPANTS)
        total = sum(len(given.owned[who]) for who in here)
        updates: list[list[Update]] = [[] for _ in state]
        for who in here:
            trained = train(task, rule, rate, number, state, ranks[who], given.owned[who], seed=1000 * number + who)
            weight = len(given.owned[who]) / total
            for module, (A, B) in zip(updates, trained, strict=True):
                module.append(Update(A, B, SCALING, weight, SCALING))
        state = [rule.aggregate(each, previous) for each, previous in zip(updates, state, strict=True)]
    return outcome(task, rule, state, given)


def train(
    task: Task,
    rule: Rule,
    rate: float,
    round: int,
    state: Sequence[GlobalFactors],
    rank: int,
    own: Sequence[int],
    seed: int,
) -> list[tuple[Tensor, Tensor]]:
    """What one participant uploads: A and B of every module after its steps of AdamW; `round`: from 0."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    starts = [rule.start(factors, rank, SCALING, generator) for factors in state]
    factors = [(start.A.clone(), start.B.clone()) for start in starts]
    kinds = rule.trained(round + 1)
    parameters = [x.requires_grad_() for pair in factors for kind, x in zip("AB", pair, strict=True) if kind in kinds]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for _ in range(STEPS):
        picked = chance.choices(own, k=BATCH)
        optimizer.zero_grad()
        adapter = [combined(start, A, B) for start, (A, B) in zip(starts, factors, strict=True)]
        loss = cross_entropy(logits(task, task.train.embedded, picked, adapter), task.train.labels[picked])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
    return [(A.detach(), B.detach()) for A, B in factors]


def combined(start: Start, A: Tensor, B: Tensor) -> LoRA:
    """What is trained and what is frozen under it as one adapter."""
    below = start.frozen
    return LoRA(torch.cat([A, *(a for a, _ in below)]), SCALING * torch.cat([B, *(b for _, b in below)], 1))


def logits(task: Task, embedded: Sequence[Tensor], picked: Sequence[int], adapter: Sequence[LoRA]) -> Tensor:
    """(questions, intents) of those picked."""
    pooled = task.encoder.pooled(batch([embedded[index] for index in picked]), adapter)
    return linear(normalize(pooled, dim=1), task.head)


def outcome(task: Task, rule: Rule, state: Sequence[GlobalFactors], given: Federation) -> Outcome:
    """What the last global update is worth."""
    largest = state[0].A.shape[0]
    whole = accuracy(task, state, given.measured, largest)
    slice_ = accuracy(task, state, given.measured, min(given.ranks)) if largest > 1 else whole
    used = whole if rule.whole_view or rule.ranks != "own" else slice_
    return Outcome(whole, slice_, used, tail_energy(state, min(given.ranks)))


@torch.no_grad()
def accuracy(task: Task, state: Sequence[GlobalFactors], measured: Examples, rank: int) -> float:
    """In %, of the global update at this rank."""
    adapter = [LoRA(factors.A[:rank], factors.B[:, :rank]) for factors in state]
    by_length = sorted(range(len(measured.labels)), key=lambda index: len(measured.embedded[index]))
    right = 0
    for start in range(0, len(by_length), 64):
        picked = by_length[start : start + 64]
        found = logits(task, measured.embedded, picked, adapter).argmax(1)
        right += int((found == measured.labels[picked]).sum())
    return 100 * right / len(measured.labels)
