"""Super-NaturalInstructions on a tiny pretrained Llama: twenty agents of ranks 1 to 16 with one task each.

The setting of the FlexLoRA paper (arXiv 2402.11505) in small: every participant knows one of the seen tasks, the global
adapter is measured on the unseen tasks: response loss and ROUGE-L, each task weighted by its size.
"""

import argparse
import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.federation.federation import BenchmarkError, Federation, Participant
from benchmarks.lib.federation.figures import Metrics, printer, show_people
from benchmarks.lib.federation.options import definition, parser, run
from flexlora_client.training.data.examples import Instructed, Prompted
from flexlora_client.training.data.formats import example_of
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.evaluation.greedy_answers import generate
from flexlora_client.training.evaluation.rouge import rouge_l
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_shared.messages.runs import RunSpec

FILE = "sni_tasks.jsonl.gz"
RANKS = tuple(rank for rank in (1, 2, 4, 8, 16) for _ in range(4))
PARALLEL = 16  # answers generated at a time


@dataclass(frozen=True)
class Instance:
    """One input of a task and every answer that counts as right, the first of which is learned."""

    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One task of the data set."""

    name: str
    definition: str
    seen: bool
    train: tuple[Instance, ...]
    test: tuple[Instance, ...]


def read_tasks(path: Path) -> list[Task]:
    """Every task of the file, in its order. Raises: BenchmarkError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [_task(json.loads(line)) for line in file]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} is not the gzipped JSONL of tasks: {error!r}") from error


def _task(fields: Mapping[str, Any]) -> Task:
    train, test = (
        tuple(Instance(one["input"], tuple(one["output"])) for one in fields[part]) for part in ("train", "test")
    )
    return Task(fields["task"], fields["definition"], fields["role"] == "seen", train, test)


def shortened(definition: str, characters: int) -> str:
    """The definition's first words, at most so many characters: a context of 512 tokens holds few whole ones."""
    text = " ".join(definition.split())
    return text if len(text) <= characters else text[: characters + 1].rpartition(" ")[0]


def row(task: Task, instance: Instance, characters: int) -> dict[str, str]:
    """The instance as a row of an agent's data file."""
    return {
        "instruction": shortened(task.definition, characters),
        "input": instance.input,
        "output": instance.outputs[0],
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


def best_rouge(text: str, references: Sequence[str]) -> float:
    """ROUGE-L against the reference that is nearest, as the data set's own evaluation takes it."""
    return max(rouge_l(text, reference) for reference in references)


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
        chosen = task.test[: self.instances]
        examples = [self._example(task, instance) for instance in chosen]
        loss = evaluate(self.spec, adapter, examples, device="cpu", models=self.models, answers=0)["loss"]
        loaded = self.models.with_slice(read_slice(adapter, self.spec), self.spec, "cpu")
        texts = answers(loaded, examples)
        scores = [best_rouge(text, instance.outputs) for text, instance in zip(texts, chosen, strict=True)]
        return {"loss": loss, "rouge_l": sum(scores) / len(scores)}

    def _example(self, task: Task, instance: Instance) -> Prompted:
        example = example_of(row(task, instance, self.characters), self.spec.model)
        assert isinstance(example, Instructed)  # by the row's fields
        return Prompted(example.prompt, example.output)


def answers(loaded: LoadedModel, examples: Sequence[Prompted]) -> list[str]:
    """The model's greedy answers, in the examples' order."""
    encoder = Encoder(loaded.tokenizer, loaded.max_length)
    questions = [encoder.question(example) for example in examples]
    parts = (questions[start : start + PARALLEL] for start in range(0, len(questions), PARALLEL))
    return [text for part in parts for text in generate(loaded, part)]


def federate(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The federation; its figures."""
    tasks = read_tasks(asked.data / FILE)
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
