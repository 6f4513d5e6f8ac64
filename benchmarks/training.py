"""Local training: the agent's round beside a plain PEFT loop over the same batches, in turn.

Both begin with a loaded model and end with the adapter on disk: tokenizing, steps and writing count, loading the model does not.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.lib.progress import clock
from flexlora_client.training.contract import Job
from flexlora_client.training.data.examples import Prompted
from flexlora_client.training.loop.plan import plan_steps
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.describe_model import describe
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec, TrainingSpec

IGNORED = -100


@dataclass(frozen=True)
class Pair:
    """One repetition: seconds of each."""

    agent: float
    plain: float


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--model", type=Path, help="folder of a causal language model [a random Llama of 7 million weights]"
    )
    options.add_argument("--rank", type=int, default=16, help="LoRA rank [16]")
    options.add_argument("--examples", type=int, default=64, help="examples of about 100 to 300 characters [64]")
    options.add_argument("--batch", type=int, default=8, help="examples in a batch [8]")
    options.add_argument("--repetitions", type=int, default=5, help="pairs measured, after one that is not [5]")
    options.add_argument("--json", action="store_true", help="print JSON")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        figures = _measure(given, Path(name))
    print(json.dumps(figures) if given.json else _table(figures))


def _measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    base = given.model or _random_model(folder / "base")
    described = describe(str(base))
    training = TrainingSpec(batch_size=given.batch, learning_rate=1e-4, max_length=512)
    spec = RunSpec(
        name="bench",
        model=described.model,
        modules=described.modules,
        ranks=(given.rank,),
        rounds=1,
        training=training,
    )
    examples = [
        Prompted(f"Question {n}: {'why is it so? ' * (8 + n % 16)}", f" Because of {n}.") for n in range(given.examples)
    ]
    plain = _Plain(base, spec, examples)
    adapter = plain.save(folder / "served")
    trainer, tell = StandardTrainer(Models()), clock()

    def agent() -> None:
        trainer.train(
            Job(
                spec=spec,
                round=1,
                adapter=adapter,
                train=examples,
                heldout=(),
                output=folder / "out",
                device="cpu",
                model_path=None,
                progress=lambda step, total, loss: None,
            )
        )

    pairs, difference = [], 0.0
    for number in range(given.repetitions + 1):
        order: Sequence[Callable[[], None]] = (agent, plain.train) if number % 2 else (plain.train, agent)
        seconds = {run: _seconds(run) for run in order}
        pairs.append(Pair(seconds[agent], seconds[plain.train]))
        if number == 0:  # later, the plain loop trains on where it was
            difference = plain.difference(folder / "out" / "adapter_model.safetensors")
        tell(f"pair {number} of {given.repetitions}: agent {seconds[agent]:.2f} s, plain {seconds[plain.train]:.2f} s")
    tokens = plain.tokens
    ratios = [pair.agent / pair.plain for pair in pairs[1:]]
    return {
        "tokens": tokens,
        "largest_difference": difference,
        "agent_tokens_per_second": tokens / statistics.median(pair.agent for pair in pairs[1:]),
        "plain_tokens_per_second": tokens / statistics.median(pair.plain for pair in pairs[1:]),
        "time_ratio_median": statistics.median(ratios),
        "time_ratios": ratios,
    }


class _Plain:
    """What somebody writes with transformers and PEFT alone: padded batches, the model's own loss, AdamW."""

    def __init__(self, base: Path, spec: RunSpec, examples: Sequence[Prompted]) -> None:
        self._spec, self._examples = spec, examples
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=spec.ranks[0],
            lora_alpha=spec.ranks[0],
            target_modules=[module.name for module in spec.modules],
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        assert isinstance(model, PeftModel)
        self._model = model
        self.tokens = sum(len(ids) for ids, _ in self._encoded())

    def save(self, folder: Path) -> Path:
        """The untrained adapter, as a coordinator would serve it."""
        self._model.save_pretrained(str(folder))
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = [module.name for module in self._spec.modules]  # PEFT shortens long lists
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    def train(self) -> None:
        training = self._spec.training
        encoded = self._encoded()
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)
        self._model.train()
        for indices in plan_steps([example.characters for example in self._examples], training, 1):
            ids = pad_sequence([torch.tensor(encoded[n][0]) for n in indices], batch_first=True)
            labels = pad_sequence(
                [torch.tensor(encoded[n][1]) for n in indices], batch_first=True, padding_value=IGNORED
            )
            mask = pad_sequence([torch.ones(len(encoded[n][0]), dtype=torch.long) for n in indices], batch_first=True)
            self._model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        with tempfile.TemporaryDirectory() as name:
            state = {key: value for key, value in self._model.state_dict().items() if "lora_" in key}
            save_file(state, Path(name) / "adapter_model.safetensors")

    def difference(self, adapter: Path) -> float:
        """The largest difference of a trained number from those in the agent's file, after both trained once."""
        state = get_peft_model_state_dict(self._model)
        return max(float((state[key] - tensor).abs().max()) for key, tensor in load_file(adapter).items())

    def _encoded(self) -> list[tuple[list[int], list[int]]]:
        pairs = []
        for example in self._examples:
            prompt = self._tokenizer(example.prompt, add_special_tokens=False).input_ids
            answer = [
                *self._tokenizer(example.completion, add_special_tokens=False).input_ids,
                self._tokenizer.eos_token_id,
            ]
            pairs.append(((prompt + answer)[:512], ([IGNORED] * len(prompt) + answer)[:512]))
        return pairs


def _random_model(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer()
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=4,
            max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder)
    return folder


def _seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _table(figures: dict[str, Any]) -> str:
    return (
        f"largest difference of a trained number: {figures['largest_difference']:.1e}\n"
        f"agent {figures['agent_tokens_per_second']:.0f} tokens/s, plain PEFT {figures['plain_tokens_per_second']:.0f} tokens/s; "
        f"time ratio agent / plain: median {figures['time_ratio_median']:.3f} of "
        f"{', '.join(f'{ratio:.3f}' for ratio in figures['time_ratios'])}"
    )


if __name__ == "__main__":
    main()
