"""BANKING77 on the pretrained MiniLM encoder: eight agents of ranks 4 to 32, the 77 intents dealt out unevenly.

Label skew: each intent's questions go to the agents in proportions drawn from Dirichlet(alpha); at 0.01 nearly every
intent has one owner. The head starts from noise and is trained in full beside LoRA. Accuracy is on the test questions.
"""

import argparse
import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.federation.federation import BenchmarkError, Federation, Participant
from benchmarks.lib.federation.figures import Metrics, printer, show_people
from benchmarks.lib.federation.options import definition, parser, run
from flexlora_client.training.data.examples import Labelled
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.workloads.banking77 import Question, packaged_model, read_questions

RANKS = (4, 4, 8, 8, 16, 16, 32, 32)
SMALLEST = 20  # questions that every agent has at least
DRAWS = 1000  # of the split, until every agent has so many
MAX_LENGTH = 64  # tokens; the longest question has 98, one in 400 has more than this


def dirichlet_split(labels: Sequence[str], agents: int, alpha: float, smallest: int, seed: int) -> list[list[int]]:
    """Deal examples to agents by label: each label's examples in proportions drawn from Dirichlet(alpha, ..., alpha).

    Returns each agent's indices into `labels`; every index is in exactly one of them. Drawn again until every agent
    has `smallest` (Yurochkin et al. 2019, arXiv 1905.12022; Li et al. 2022, arXiv 2102.02079).

    Raises:
        BenchmarkError: alpha is not above 0, or none of many draws gave every agent so many.
    """
    if not alpha > 0:
        raise BenchmarkError(f"the Dirichlet concentration is {alpha}; give a number above 0")
    chance = np.random.default_rng(seed)
    by_label = [[n for n, label in enumerate(labels) if label == name] for name in sorted(set(labels))]
    for _ in range(DRAWS):
        parts: list[list[int]] = [[] for _ in range(agents)]
        for indices in by_label:
            cuts = np.rint(np.cumsum(chance.dirichlet([alpha] * agents))[:-1] * len(indices)).astype(int)
            for part, taken in zip(parts, np.split(chance.permutation(indices), cuts), strict=True):
                part.extend(taken.tolist())
        if min(map(len, parts)) >= smallest:
            return [sorted(part) for part in parts]
    raise BenchmarkError(
        f"no split of {len(labels)} examples by Dirichlet({alpha}) gives each of {agents} agents {smallest}; "
        "take more examples or a larger alpha"
    )


def sample(questions: Sequence[Question], size: int, seed: int) -> list[Question]:
    """At most `size` of them, the same ones for the same seed."""
    return random.Random(seed).sample(questions, min(size, len(questions)))


def deal(questions: Sequence[Question], alpha: float, seed: int, folder: Path) -> list[Participant]:
    """Write every agent's questions as CSV."""
    parts = dirichlet_split([one.category for one in questions], len(RANKS), alpha, SMALLEST, seed)
    folder.mkdir(parents=True)
    people = []
    for number, (rank, part) in enumerate(zip(RANKS, parts, strict=True), 1):
        intents = len({questions[index].category for index in part})
        path = folder / f"agent-{number}-{len(part)}-of-{intents}-intents.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows([questions[index].text, questions[index].category] for index in part)
        people.append(Participant(path.stem, rank, path))
    return people


def federate(asked: argparse.Namespace, alpha: float, folder: Path) -> dict[str, Any]:
    """One federation at one label skew; its figures."""
    train, test = (read_questions(asked.data / name) for name in ("train.csv", "test.csv"))
    labels = sorted({one.category for one in train})
    people = deal(sample(train, asked.examples, asked.seed), alpha, asked.seed, folder / "data")
    described = skeleton(describe(str(asked.model or packaged_model()), "SEQ_CLS", labels=labels))
    defined = definition("banking77", asked, described, people, MAX_LENGTH)
    spec, models = RunSpec.model_validate_json(json.dumps(defined)), Models()
    asked_of = [Labelled(one.text, labels.index(one.category)) for one in sample(test, asked.test, asked.seed)]

    def measure(adapter: Path) -> Metrics:
        return evaluate(spec, adapter, asked_of, device="cpu", models=models)

    if not asked.json:
        print(f"\nDirichlet({alpha}), {asked.strategy}: test accuracy and loss of the rank-{max(RANKS)} adapter")
    figures = Federation(defined, people, measure, printer(("accuracy", "loss"), silent=asked.json)).hold(
        folder / "run"
    )
    if not asked.json:
        show_people(figures, ("accuracy", "loss"))
    told = {"benchmark": "banking77", "alpha": alpha, "strategy": asked.strategy, "test_questions": len(asked_of)}
    return {**told, "training": defined["training"], **figures}


def main() -> None:
    """Read the options and run."""
    options = parser("banking77", "Federated BANKING77 over HTTP.", rounds=10, learning_rate=1e-2, scaling=0.1)
    options.add_argument("--model", type=Path, help="base model, a folder; None: MiniLM from its package")
    options.add_argument("--alpha", type=float, nargs="+", default=[0.5, 0.01], help="Dirichlet, one run for each")
    options.add_argument("--examples", type=int, default=2400, help="training questions, dealt to the eight agents")
    options.add_argument("--test", type=int, default=1000, help="test questions measured after every round")
    asked = options.parse_args()
    run(lambda folder: [federate(asked, alpha, folder / f"alpha-{alpha}") for alpha in asked.alpha])


if __name__ == "__main__":
    main()
