"""The optimizer's state from round to round: AdamW's moments fresh, kept, or projected onto the factors served next
(which no run offers: see decision 21).

The demo's model and its four tasks, no network: agents' own training loop, the coordinator's own strategies. `one`: a single
participant of rank 8 with the rows of all tasks; `four`: one task each, of ranks 2, 4, 8 and 16 (`fedavg`: 8). Held-out
loss of the global update of the largest rank on the mix of all tasks, the mean over the seeds, at several learning rates: a
state that only makes steps larger or smaller gains nothing at the best of them.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.lib.moments import projected
from benchmarks.lib.progress import clock
from demo.run import MODEL
from demo.tasks import TASKS, mix_rows, train_rows
from demo.world import make_world
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE, Job
from flexlora_client.training.data.examples import Example, Prompted
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_client.training.models.load_model import Models
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_server.aggregation.factors import GlobalFactors, Update, initial_factors, slice_factors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec

STATES = ("fresh", "keep", "project")
SCALING = 2.0
CASES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "one, fedavg": ("fedavg", (8,)),
    "one, flexlora": ("flexlora", (8,)),
    "four, fedavg": ("fedavg", (8,) * len(TASKS)),
    "four, flexlora": ("flexlora", (2, 4, 8, 16)),
}
Factors = dict[str, GlobalFactors]


def definition(name: str, ranks: Sequence[int], state: str, seed: int, rounds: int, steps: int, rate: float) -> RunSpec:
    """A run on the demo's model."""
    training = {
        "learning_rate": rate,
        "batch_size": 16,
        "max_length": 64,
        "max_steps": steps,
        "epochs": 1000,
        "seed": seed,
        "optimizer_state": "fresh" if state == "fresh" else "keep",
    }
    fields = {
        "name": "bench",
        **skeleton(describe(str(MODEL))),
        "ranks": sorted(set(ranks)),
        "scaling": {"alpha_per_rank": SCALING},
        "strategy": name,
        "rounds": rounds,
        "training": training,
        "seed": seed,
    }
    return RunSpec.model_validate_json(json.dumps(fields))


def losses(
    spec: RunSpec,
    ranks: Sequence[int],
    data: Sequence[Sequence[Example]],
    mix: Sequence[Example],
    shown: Sequence[int],
    project: bool,
) -> list[float]:
    """The held-out loss after each of the rounds `shown`."""
    models, largest = Models(), max(ranks)
    trainer = StandardTrainer(models)
    factors = {
        module.name: initial_factors(
            module.out_features, module.in_features, largest, spec.seed, module.name, torch.float32
        )
        for module in spec.modules
    }
    found = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for number in range(1, spec.rounds + 1):
            trained = [
                _train(trainer, spec, factors, number, who, rank, examples, folder, project)
                for who, (rank, examples) in enumerate(zip(ranks, data, strict=True))
            ]
            factors = _aggregated(spec, factors, ranks, trained)
            if number in shown:
                served = write_slice(factors, spec, largest, folder / "global")
                found.append(evaluate(spec, served, mix, models=models, device="cpu", answers=0)["loss"])
    return found


def _train(
    trainer: StandardTrainer,
    spec: RunSpec,
    factors: Factors,
    number: int,
    who: int,
    rank: int,
    examples: Sequence[Example],
    folder: Path,
    project: bool,
) -> dict[str, Tensor]:
    start, output = write_slice(factors, spec, rank, folder / "served"), folder / "trained"
    kept = folder / f"state-{who}"
    if project and number > 1:
        _project(spec, kept / f"round-{number - 1:06}.pt", kept / ADAPTER_FILE, start / ADAPTER_FILE)
    job = Job(
        spec=spec,
        round=number,
        adapter=start,
        train=examples,
        heldout=(),
        output=output,
        device="cpu",
        model_path=None,
        progress=lambda step, total, loss: None,
        participant=str(who),
        state=kept,
        notice=_refuse,
    )
    adapter = trainer.train(job).adapter
    kept.mkdir(exist_ok=True)
    return load_file(adapter.replace(kept / ADAPTER_FILE))


def _project(spec: RunSpec, state: Path, trained: Path, served: Path) -> None:
    """Replace the kept moments by those projected from what was trained onto what is served."""
    content, old, new = torch.load(state, weights_only=True), load_file(trained), load_file(served)
    moments = content["state"]["optimizer"]["state"]
    for index, module in enumerate(spec.modules):  # in the model's order, each A before its B
        a, b = 2 * index, 2 * index + 1
        before, after = ((each[key_A(module.name)], each[key_B(module.name)]) for each in (old, new))
        assert moments[a]["exp_avg"].shape == before[0].shape
        moments[a], moments[b] = projected(moments[a], moments[b], before, after)
    torch.save(content, state)


def _refuse(sentence: str) -> None:
    raise RuntimeError(sentence)  # no state may be lost here


def write_slice(factors: Factors, spec: RunSpec, rank: int, folder: Path) -> Path:
    """A slice as the coordinator serves it."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, each in factors.items():
        A, B = slice_factors(each, rank, SCALING, torch.float32)
        tensors |= {key_A(name): A.contiguous(), key_B(name): B.contiguous()}
    save_file(tensors, folder / ADAPTER_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(adapter_config(spec, rank, {})))
    return folder


def _aggregated(
    spec: RunSpec, factors: Factors, ranks: Sequence[int], trained: Sequence[Mapping[str, Tensor]]
) -> Factors:
    found, rule = {}, strategy(spec.strategy)
    for name, previous in factors.items():
        updates = [Update(each[key_A(name)], each[key_B(name)], SCALING, 1 / len(ranks), SCALING) for each in trained]
        found[name] = rule.aggregate(updates, previous, torch.float32, spec.error_bound).factors
    return found


def measured(case: str, state: str, rate: float, seeds: int, shown: Sequence[int], steps: int) -> list[list[float]]:
    """The losses by seed and round shown."""
    name, ranks = CASES[case]
    world = make_world()
    found = []
    for seed in range(seeds):
        by_task = [[Prompted(r.prompt, r.completion) for r in train_rows(task, world, seed)] for task in TASKS]
        data = by_task if len(ranks) > 1 else [[row for rows in by_task for row in rows]]
        mix = [Prompted(row.prompt, row.completion) for row in mix_rows(world, seed)]
        spec = definition(name, ranks, state, seed, shown[-1], steps, rate)
        found.append(losses(spec, ranks, data, mix, shown, state == "project"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    shows = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench optimizer-state", description=__doc__, formatter_class=shows)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each participant in a round")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="learning rates")
    parser.add_argument("--case", action="append", choices=list(CASES), help="these alone; may be repeated")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    shown = sorted({2, max(2, asked.rounds // 2), asked.rounds})
    tell = clock()
    print(f"| case | learning rate | state | {' | '.join(f'round {number}' for number in shown)} |")
    print(f"| --- | ---: | --- |{' ---: |' * len(shown)}")
    for case, rate, state in itertools.product(asked.case or CASES, asked.rates, STATES):
        tell(f"{case}, {rate}, {state}")
        found = measured(case, state, rate, asked.seeds, shown, asked.steps)
        cells = " | ".join(f"{mean(losses):.4f}" for losses in zip(*found, strict=True))
        print(f"| {case} | {rate:g} | {state} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
