"""A simulated participant's round beside plain PEFT: the same model, slices and batches, CPU seconds in turn, in one process.

The simulation counts whole: what the coordinator does for a round is dealt out among its participants. The plain loop loads a
slice's file into a model that is wrapped already, tokenizes, trains, and saves a file.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.lib.progress import clock
from flexlora_client.training.data.examples import Prompted
from flexlora_client.training.loop.plan import plan_steps
from flexlora_simulation import Experiment, simulate
from flexlora_simulation.engine.jobs import TrainedUpdate, TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.engine.same_process import SameProcess
from flexlora_simulation.experiment import parse
from flexlora_simulation.population.participants import draw_participants
from flexlora_simulation.results.tables import RoundRow, Row
from flexlora_simulation.workloads.registry import open_workload

IGNORED = -100
WORDS = ("add", "and", "the", "one", "two", "three", "four", "five", "six", "seven", "eggs", "boxes", "trees")


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--model", type=Path, help="folder of a causal language model [a random Llama of 260,000 weights]"
    )
    options.add_argument("--ranks", type=int, nargs="+", default=[4, 16], help="dealt out in equal parts [4 16]")
    options.add_argument("--clients", type=int, default=8, help="participants of a round [8]")
    options.add_argument("--steps", type=int, default=20, help="optimizer steps of a participant's round [20]")
    options.add_argument("--batch", type=int, default=8, help="examples in a batch [8]")
    options.add_argument("--tokens", type=int, default=128, help="of an example, about [128]")
    options.add_argument("--rounds", type=int, default=5, help="rounds measured, after one that is not [5]")
    options.add_argument("--json", action="store_true", help="print JSON")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = _measure(given, Path(name))
    print(json.dumps(figures) if given.json else _table(figures))


def _measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = given.model or _random_model(folder / "base")
    experiment, tell = _experiment(given, model, folder), clock()
    beside: list[_Beside] = []
    rounds: list[tuple[float, float, float]] = []  # CPU seconds of a participant: whole, of its training, plain
    last = [0.0]

    def executor(experiment: Experiment, folder: Path) -> _Beside:
        beside.append(_Beside(experiment, folder, model))
        return beside[0]

    def on_row(row: Row) -> None:
        if not isinstance(row, RoundRow):
            return
        now, done = time.process_time(), beside[0]
        if row.round > 1:  # that one loads the base model
            whole = (now - last[0] - sum(done.plain)) / row.accepted
            rounds.append((whole, sum(done.agent) / row.accepted, sum(done.plain) / row.accepted))
            tell(f"round {row.round}: {rounds[-1][0]:.3f} s each, plain {rounds[-1][2]:.3f} s")
        done.agent.clear()
        done.plain.clear()
        last[0] = time.process_time()

    simulate(experiment, folder / "run", executor=executor, on_row=on_row)
    whole, training, plain = map(list, zip(*rounds, strict=True))
    return {
        "largest_difference": beside[0].difference,
        "largest_change": beside[0].change,
        "whole_seconds": statistics.median(whole),
        "training_seconds": statistics.median(training),
        "plain_seconds": statistics.median(plain),
        "training_ratio_median": statistics.median(a / b for a, b in zip(training, plain, strict=True)),
        "whole_ratio_median": statistics.median(a / b for a, b in zip(whole, plain, strict=True)),
        "whole_ratios": [a / b for a, b in zip(whole, plain, strict=True)],
    }


def _table(figures: dict[str, Any]) -> str:
    return "\n".join(
        (
            "CPU seconds of a participant's round   median   beside plain",
            f"plain PEFT                           {figures['plain_seconds']:8.3f}",
            f"the agent's training                 {figures['training_seconds']:8.3f}   "
            f"{figures['training_ratio_median']:.3f}",
            f"the simulation, whole                {figures['whole_seconds']:8.3f}   "
            f"{figures['whole_ratio_median']:.3f}",
        )
    )


def _experiment(given: argparse.Namespace, model: Path, folder: Path) -> Experiment:
    """All participants in all rounds, in whatever order; the data are in the format of GSM8K."""
    tokenizer, size = AutoTokenizer.from_pretrained(model), given.steps * given.batch
    data = folder / "data"
    data.mkdir()
    lines = [json.dumps({"question": _question(tokenizer, n, given.tokens), "answer": str(n)}) for n in range(size)]
    (data / "train.jsonl").write_text("\n".join(lines * given.clients) + "\n")
    (data / "test.jsonl").write_text(lines[0] + "\n")
    return parse(
        {
            "name": "bench",
            "workload": {"name": "gsm8k", "data": str(data), "model": str(model)},
            "partition": {"participants": given.clients},
            "resources": [{"rank": rank} for rank in given.ranks],
            "evaluation": {"on": []},
            "run": {
                "rounds": given.rounds + 1,
                "clients_per_round": given.clients,
                "gather_timeout": 0.0,
                "training": {"batch_size": given.batch, "learning_rate": 1e-3, "max_length": given.tokens + 32},
            },
        }
    )


def _question(tokenizer: Any, number: int, tokens: int) -> str:
    """Words that make about so many tokens together with the rest of the example."""
    words = list[str]()
    while len(tokenizer(f"Question: {' '.join(words)}\nAnswer:\n{number}").input_ids) < tokens - 4:
        words.append(WORDS[(number + len(words) ** 2) % len(WORDS)])
    return " ".join(words)


class _Beside(SameProcess):
    """The executor that trains everything once more with the plain loop, and notes CPU seconds of both."""

    def __init__(self, experiment: Experiment, folder: Path, model: Path) -> None:
        super().__init__(ParticipantProcess(experiment, folder))
        items = open_workload(experiment.workload).corpus().train
        self._examples = {
            one.name: [items[index].example for index in one.part.train] for one in draw_participants(experiment, items)
        }
        self._plain, self._saved = _Plain(model), folder / "plain.safetensors"
        self.agent, self.plain = list[float](), list[float]()
        self.difference = self.change = 0.0  # of plain from agent; by training

    def train(self, job: TrainingJob) -> "Future[TrainedUpdate]":
        """See `Executor`."""
        future, examples = super().train(job), self._examples[job.participant]
        trained, began = future.result(), time.process_time()
        self._plain.train(job, examples, self._saved)
        self.plain.append(time.process_time() - began)
        self.agent.append(trained.cpu_seconds)
        saved = load_file(self._saved)
        self.difference = max(self.difference, _largest(saved, load_file(trained.file)))
        self.change = max(self.change, _largest(saved, load_file(job.slice)))
        return future


def _largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of a number."""
    return max(float((other[key] - tensor).abs().max()) for key, tensor in one.items())


class _Plain:
    """What somebody writes with transformers and PEFT alone: padded batches, the model's own loss, AdamW."""

    def __init__(self, base: Path) -> None:
        self._base, self._tokenizer = base, AutoTokenizer.from_pretrained(base)
        self._wrapped = cache(self._wrap)

    def train(self, job: TrainingJob, examples: list[Any], target: Path) -> None:
        spec = job.task.spec
        model = self._wrapped(job.task.rank, tuple(module.name for module in spec.modules))
        set_peft_model_state_dict(model, load_file(job.slice))
        encoded = [self._encode(example) for example in examples]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=spec.training.learning_rate, weight_decay=0.0)
        model.train()
        for indices in plan_steps([example.characters for example in examples], spec.training, job.task.round):
            batch = [encoded[index] for index in indices]
            ids = pad_sequence([ids for ids, _ in batch], batch_first=True)
            labels = pad_sequence([labels for _, labels in batch], batch_first=True, padding_value=IGNORED)
            mask = pad_sequence([torch.ones_like(ids) for ids, _ in batch], batch_first=True)
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, spec.training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        save_file(get_peft_model_state_dict(model, save_embedding_layers=False), target)

    def _wrap(self, rank: int, modules: tuple[str, ...]) -> PeftModel:
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=list(modules))
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(self._base), config)
        assert isinstance(model, PeftModel)
        return model

    def _encode(self, example: Prompted) -> tuple[torch.Tensor, torch.Tensor]:
        prompt = self._tokenizer(example.prompt, add_special_tokens=False).input_ids
        answer = self._tokenizer(example.completion, add_special_tokens=False).input_ids
        answer = [*answer, self._tokenizer.eos_token_id]
        return torch.tensor(prompt + answer), torch.tensor([IGNORED] * len(prompt) + answer)


def _random_model(folder: Path) -> Path:
    """The size of stories260K."""
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer()
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
