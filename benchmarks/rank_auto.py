"""What `--rank auto` chooses under limits of memory and processor time, and its predictions beside a measured round.

A Llama of random weights (55 million parameters, or --model) is measured and then trained for one round, in a process under
each limit. Needs Linux and root, for control groups.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.confined import Limits, run_confined
from flexlora_shared.messages.runs import RunSpec, TrainingSpec

GIB = 2**30
RANKS = (4, 16, 64, 128, 256, 512)
LIMITS = (
    Limits(1 * GIB),
    Limits(2 * GIB),
    Limits(4 * GIB),
    Limits(4 * GIB, processors=0.25),
)
Figures = dict[str, Any]


def make_llama(folder: Path) -> Path:
    """A Llama of 55 million random parameters with a small tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from demo.make_model import make_tokenizer
    from demo.world import make_world

    tokenizer = make_tokenizer(make_world())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(model: Path, limits: Limits, minutes: float, ranks: Sequence[int] = RANKS) -> Figures:
    """The choice under these limits for a round of so many minutes, its prediction and one measured round."""
    asked = {"model": str(model), "minutes": minutes, "ranks": list(ranks)}
    command = [sys.executable, "-m", "benchmarks.rank_auto", "--child", json.dumps(asked)]
    ended = run_confined(command, limits, capture_output=True)
    if ended.returncode != 0:
        return {"returncode": ended.returncode, "error": ended.stderr[-2000:]}
    found: Figures = json.loads(ended.stdout.splitlines()[-1])
    return found


def child(asked: Figures) -> Figures:
    """One choice and one round, in this process."""
    import torch

    from flexlora_client.training.contract import Compute
    from flexlora_client.training.fitting.measure import Participant, choose_rank
    from flexlora_client.training.models.load_model import Models

    torch.set_num_threads(1)
    spec, examples = _run(asked), _examples()
    own = Participant(examples[:24], examples[24:], 4, "cpu", None, Compute())
    models, began = Models(), time.perf_counter()
    choice = choose_rank(spec, own, models)
    print(choice.table(), file=sys.stderr)
    found: Figures = {
        "table": choice.table(),
        "options": choice.rows(),
        "measuring_seconds": time.perf_counter() - began,
    }
    if choice.chosen is None:
        return found
    return found | {"chosen": next(row for row in choice.rows() if row["chosen"])} | _round(spec, own, models, choice)


def _round(spec: RunSpec, own: Any, models: Any, choice: Any) -> Figures:
    """The round that was predicted."""
    import torch

    from flexlora_client.training.contract import Compute, Job
    from flexlora_client.training.evaluation.evaluate import evaluate
    from flexlora_client.training.fitting.memory import PeakMemory
    from flexlora_client.training.loop.standard import StandardTrainer
    from flexlora_client.training.models.devices import release_memory
    from flexlora_client.training.models.trial_slice import trial_slice, write_trial_slice

    chosen, device = choice.chosen, torch.device("cpu")
    compute = Compute(micro_batch=chosen.micro_batch, gradient_checkpointing=chosen.gradient_checkpointing)
    with tempfile.TemporaryDirectory() as name:
        served, output = (
            write_trial_slice(trial_slice(spec, chosen.rank), spec, Path(name) / "served"),
            Path(name) / "out",
        )
        release_memory(device)
        with PeakMemory(device) as peak:
            began = time.perf_counter()
            evaluate(spec, served, own.heldout, device="cpu", models=models, answers=own.answers, compute=compute)
            job = Job(
                spec,
                1,
                served,
                own.train,
                own.heldout,
                output,
                "cpu",
                None,
                lambda step, total, loss: None,
                compute=compute,
            )
            outcome = StandardTrainer(models).train(job)
            evaluate(spec, output, own.heldout, device="cpu", models=models, answers=0, compute=compute)
            seconds = time.perf_counter() - began
    return {
        "peak_bytes": peak.bytes,
        "seconds": seconds,
        "changed": None if outcome.compute is None else str(outcome.compute),
    }


def _run(asked: Figures) -> RunSpec:
    from flexlora_client.training.models.describe_model import describe

    described = describe(asked["model"])
    return RunSpec(
        name="rank-auto",
        model=described.model,
        modules=described.modules,
        extra=described.extra,
        ranks=tuple(asked["ranks"]),
        rounds=1,
        round_timeout=60 * asked["minutes"],
        training=TrainingSpec(batch_size=8, max_length=256),
    )


def _examples() -> list[Any]:
    """32 stories of 10 to 120 words, each in two parts."""
    import random

    from demo.world import make_world, story
    from flexlora_client.training.data.examples import Prompted

    world, rng = make_world(), random.Random(0)
    words = " ".join(story(world, rng) for _ in range(32 * 8)).split()
    texts = [words[n * 20 : n * 20 + 10 + (n * 37) % 110] for n in range(32)]
    return [Prompted(" ".join(text[:5]), " " + " ".join(text[5:])) for text in texts]


def rows(model: Path, minutes: float) -> Iterator[Figures]:
    """Each limit's figures."""
    for limits in LIMITS:
        yield {"limits": limits} | measure(model, limits, minutes)


def show(found: Figures) -> str:
    """One limit's figures as text."""
    limits = found["limits"]
    head = f"{limits.memory_bytes / GIB:.0f} GiB, {limits.processors or 'all of the'} processors"
    if "error" in found:
        return f"{head}: ended with {found['returncode']}\n{found['error']}"
    text = f"{head}: measured for {found['measuring_seconds']:.0f} s\n{found['table']}"
    if "chosen" not in found:
        return f"{text}\nno rank fits"
    chosen, peak, seconds = found["chosen"], found["peak_bytes"], found["seconds"]
    predicted = chosen["seconds"] - chosen["transfer_seconds"]  # nothing is transferred here
    return (
        f"{text}\npeak {peak / GIB:.2f} GiB, predicted {chosen['peak_bytes'] / peak - 1:+.0%}; "
        f"round {seconds:.1f} s, predicted {predicted / seconds - 1:+.0%}; changed: {found['changed']}"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, help="folder of a base model instead of the random one")
    options.add_argument("--minutes", type=float, default=5.0, help="the round's time")
    options.add_argument("--child", help=argparse.SUPPRESS)
    asked = options.parse_args(given)
    if asked.child:
        print(json.dumps(child(json.loads(asked.child))))
        return
    with tempfile.TemporaryDirectory() as name:
        model = asked.model or make_llama(Path(name))
        for found in rows(model, asked.minutes):
            print(show(found), flush=True)


if __name__ == "__main__":
    main()
