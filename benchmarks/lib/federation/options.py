"""The common part of the federated benchmarks: options, the definition of the run, start and end."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.lib.federation.federation import BenchmarkError, Participant
from flexlora_client.errors import TrainingError
from flexlora_simulation.errors import SimulationError


def parser(name: str, about: str, *, rounds: int, learning_rate: float, scaling: float) -> argparse.ArgumentParser:
    """The options that both benchmarks have, with these defaults."""
    shows = argparse.ArgumentDefaultsHelpFormatter
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=about, formatter_class=shows)
    made.add_argument("--data", type=Path, required=True, help="folder of the data set")
    made.add_argument("--rounds", type=int, default=rounds, help="rounds of the run")
    made.add_argument("--seed", type=int, default=0, help="of sampling, dealing, round 0 and training")
    made.add_argument("--strategy", default="flexlora", help="flexlora, flexlora-residual, ...")
    made.add_argument("--learning-rate", type=float, default=learning_rate, help="of AdamW")
    made.add_argument("--scaling", type=float, default=scaling, help="LoRA's alpha over rank, the same at every rank")
    made.add_argument("--epochs", type=int, default=1, help="of local training in each round")
    made.add_argument("--batch-size", type=int, default=8, help="of local training")
    made.add_argument("--clients-per-round", type=int, help="participants in each round; None: all")
    made.add_argument("--json", action="store_true", help="print nothing but the JSON")
    return made


def definition(
    name: str, asked: argparse.Namespace, described: Mapping[str, Any], people: Sequence[Participant], max_length: int
) -> dict[str, Any]:
    """The run's definition. A round waits for all; one that lost some on the way goes on at its deadline, and shows it."""
    each_round = asked.clients_per_round or len(people)
    return {
        "name": name,
        **described,
        "ranks": sorted({person.rank for person in people}),
        "scaling": {"alpha_per_rank": asked.scaling},
        "strategy": asked.strategy,
        "rounds": asked.rounds,
        "clients_per_round": asked.clients_per_round,
        "min_clients": each_round,
        "min_updates": max(1, each_round // 2),
        "round_timeout": 1200.0,
        "training": {
            "learning_rate": asked.learning_rate,
            "epochs": asked.epochs,
            "batch_size": asked.batch_size,
            "max_length": max_length,
            "seed": asked.seed,
        },
        "seed": asked.seed,
    }


def run(hold: Callable[[Path], Sequence[Mapping[str, Any]]]) -> None:
    """Hold the federations in a folder that is deleted afterwards, then print each one's figures as a line of JSON."""
    torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    set_verbosity_error()  # type: ignore[no-untyped-call]  # a classifier's new head is no news
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unwind: no process stays behind
    try:
        with TemporaryDirectory(prefix="flexlora-bench-") as folder:
            found = hold(Path(folder))
    except (BenchmarkError, SimulationError, TrainingError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; every process is ended")
    for figures in found:
        print(json.dumps(figures))
