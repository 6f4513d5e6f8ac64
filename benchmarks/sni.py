"""Super-NaturalInstructions on a tiny pretrained Llama: twenty agents of ranks 1 to 16 with one task each.

The setting of the FlexLoRA paper (arXiv 2402.11505) in small: every participant knows one of the seen tasks, the global
adapter is measured on the unseen tasks: response loss and ROUGE-L, each task weighted by its size.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.federation.federation import BenchmarkError, Federation, Participant
from benchmarks.lib.federation.figures import Metrics, printer, show_people
from benchmarks.lib.federation.options import definition, parser, run
from flexlora_client.training.data.formats import example_of
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.errors import DataError
from flexlora_simulation.workloads.sni_files import ONE_FILE, Instance, Task, read_file, shortened

RANKS = tuple(rank for rank in (1, 2, 4, 8, 16) for _ in range(4))


def tasks_of(path: Path) -> list[Task]:
    """Every task of the file, in its order. Raises: BenchmarkError."""
    try:
        return read_file(path)
    except DataError as error:
        raise BenchmarkError(str(error)) from error


def row(task: Task, instance: Instance, characters: int) -> dict[str, Any]:
    """The instance as a row of an agent's data file."""
    return {
        "instruction": shortened(task.definition, characters),
        "input": instance.input,
        "output": instance.outputs[0],
        "references": list(instance.outputs[1:]),
    }


def deal(tasks: Sequence[Task], characters: int, seed: int, folder: Path) -> list[Participant]:
    """Draw a seen task for every participant and write its instances as JSONL."""
    seen = [task for task in tasks if task.seen]
    if len(seen) < len(RANKS):
        raise BenchmarkError(f"there are {len(seen)} seen tasks for {len(RANKS)} participants")
    folder.mkdir(parents=True)
    people = []
    for rank, task in zip(RANKS, random.Random(seed).sample(seen, len(RANKS)), strict=True):
        files = {}
        for part, instances in (("train", task.train), ("heldout", task.test)):
            files[part] = folder / f"{task.name}-{part}.jsonl"
            lines = [json.dumps(row(task, instance, characters)) for instance in instances]
            files[part].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        people.append(Participant(task.name[:60].rstrip("._-"), rank, files["train"], files["heldout"]))
    return people


def weighted(values: Sequence[Metrics], sizes: Sequence[int]) -> Metrics:
    """The mean of each metric over tasks, weighted by the tasks' sizes."""
    total = sum(sizes)
    return {name: sum(one[name] * size for one, size in zip(values, sizes, strict=True)) / total for name in values[0]}


@dataclass(frozen=True)
class Unseen:
    """How adapters are measured: on the first instances of every unseen task."""

    spec: RunSpec
    tasks: Sequence[Task]
    instances: int  # of each task
    characters: int  # of a definition
    models: Models

    def measure(self, adapter: Path) -> Metrics:
        """`loss` (nats a response token) and `rouge_l` of the adapter in a folder."""
        return weighted([self._task(adapter, task) for task in self.tasks], [len(task.test) for task in self.tasks])

    def _task(self, adapter: Path, task: Task) -> Metrics:
        examples = [example_of(row(task, one, self.characters), self.spec.model) for one in task.test[: self.instances]]
        found = evaluate(self.spec, adapter, examples, device="cpu", models=self.models)
        return {name: found[name] for name in ("loss", "rouge_l")}


def federate(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The federation; its figures."""
    tasks = tasks_of(asked.data / ONE_FILE)
    people = deal(tasks, asked.definition, asked.seed, folder / "data")
    defined = definition("sni", asked, skeleton(describe(str(asked.model))), people, asked.max_length)
    spec = RunSpec.model_validate_json(json.dumps(defined))
    unseen = Unseen(spec, [task for task in tasks if not task.seen], asked.unseen, asked.definition, Models())
    if not asked.json:
        print(f"{asked.strategy}: unseen tasks, weighted by size, with the rank-{max(RANKS)} adapter")
    show = printer(("loss", "rouge_l"), silent=asked.json)
    figures = Federation(defined, people, unseen.measure, show, ("--answers", "0")).hold(folder / "run")
    if not asked.json:
        show_people(figures, ("loss",))
    told = {"benchmark": "sni", "strategy": asked.strategy, "unseen_tasks": len(unseen.tasks)}
    return {**told, "unseen_instances_of_each": asked.unseen, "training": defined["training"], **figures}


def main() -> None:
    """Read the options and run."""
    about = "Federated Super-NaturalInstructions over HTTP."
    options = parser("sni", about, rounds=10, learning_rate=5e-3, scaling=2.0)
    options.add_argument("--model", type=Path, required=True, help="base model, a folder")
    options.add_argument("--unseen", type=int, default=10, help="instances of every unseen task measured each round")
    options.add_argument("--definition", type=int, default=160, help="characters of a task's definition kept")
    options.add_argument("--max-length", type=int, default=512, help="tokens; a longer prompt loses its beginning")
    asked = options.parse_args()
    run(lambda folder: [federate(asked, folder)])


if __name__ == "__main__":
    main()
