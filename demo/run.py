"""The demo: a coordinator, four agents with ranks 2, 4, 8 and 16 and a task each, rounds of FlexLoRA, and what came of it."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from demo.cluster import Agent, Cluster, agents, cluster
from demo.tasks import write_tasks
from demo.texts import show_texts
from demo.watch import AgentEndedError, Record, events
from flexlora_client.errors import DataError, TrainingError
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.loading import load_data
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec

RUN = "demo"
RANKS = (2, 4, 8, 16)
MODEL = Path(__file__).parent / "model"
FOLDER_PREFIX = "flexlora-demo-"  # of the temporary folder
HELDOUT_FRACTION = 0.1  # of a data file given by the user
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Participant:
    """A participant of the demo: its rank, its data, and what it holds out (None: a tenth of the data)."""

    name: str
    rank: int
    data: Path
    heldout: Path | None


def definition(model: str, rounds: int, *, small: bool) -> dict[str, Any]:
    """The run's definition; `small` has the hyper-parameters of the demo's own model."""
    training = {"learning_rate": 2e-4, "epochs": 1, "batch_size": 8, "max_length": 512}
    if small:
        training = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16, "max_length": 64}
    return {
        "name": RUN,
        **skeleton(describe(model)),
        "ranks": list(RANKS),
        "scaling": {"alpha_per_rank": 2.0},
        "rounds": rounds,
        "min_clients": len(RANKS),
        "min_updates": len(RANKS),
        "round_timeout": 3600.0,
        "training": training,
    }


def participants(folder: Path, data: Sequence[Path]) -> list[Participant]:
    """One for each rank: the demo's tasks, or the user's files in turn."""
    if data:
        files = [data[number % len(data)] for number in range(len(RANKS))]
        return [
            Participant(f"{rank}-{re.sub('[^A-Za-z0-9._-]', '-', path.stem)[:40]}", rank, path.resolve(), None)
            for rank, path in zip(RANKS, files, strict=True)
        ]
    written, _ = write_tasks(folder / "tasks", seed=0)
    return [
        Participant(files.task.name, rank, files.train, files.heldout)
        for rank, files in zip(RANKS, written, strict=True)
    ]


def start(coordinator: Cluster, participant: Participant) -> Agent:
    """Enroll a participant and start its agent."""
    coordinator.enroll(participant.name)
    heldout = (
        ["--heldout", str(participant.heldout)]
        if participant.heldout
        else ["--heldout-fraction", str(HELDOUT_FRACTION)]
    )
    given = ["--rank", str(participant.rank), "--data", str(participant.data), *heldout, "--threads", "1"]
    # rounds of seconds, whose figures are to be over all examples on every machine
    return coordinator.agent(participant.name, RUN, *given, "--evaluation-share", "1000")


def watch(started: Sequence[Agent], ranks: dict[str, int]) -> dict[str, Record]:
    """Show the agents' steps until all have ended; what each reported."""
    records = {agent.name: Record() for agent in started}
    begun = time.monotonic()
    for agent, event in events(started):
        records[agent.name].take(event)
        shown = _line(event)
        if shown:
            console.print(f"{time.monotonic() - begun:6.1f} s  rank {ranks[agent.name]:>2}  {agent.name:<12} {shown}")
    return records


def _line(event: dict[str, Any]) -> str | None:
    metrics = {name: f"{value:.3f}" for name, value in event.get("metrics", {}).items()}
    match event["event"]:
        case "trained":
            return f"round {event['round']}: trained, loss {metrics['train_loss']}"
        case "accepted":
            return f"round {event['round']}: update of {event['bytes']:,} bytes accepted"
        case "evaluated":
            exact = f", exact match {metrics['exact_match']}" if "exact_match" in metrics else ""
            return f"adapter of round {event['round']}: loss {metrics['loss']}{exact}"
        case "declared" | "completed":
            return str(event["event"])
    return None


def participants_table(people: Sequence[Participant], records: dict[str, Record], rounds: int) -> Table:
    """Each participant's traffic, and its own held-out data before and after."""
    table = Table(title="Participants: held-out data of their own, served at their own rank")
    for column in (
        "participant",
        "rank",
        "bytes up",
        "bytes down",
        "loss before",
        "after",
        "exact match before",
        "after",
    ):
        table.add_column(column, justify="left" if column == "participant" else "right")
    for person in people:
        record = records[person.name]
        before, after = record.evaluations.get(0, {}), record.evaluations.get(rounds, {})  # none without held-out data
        table.add_row(
            person.name,
            str(person.rank),
            f"{record.uploaded:,}",
            f"{record.downloaded:,}",
            *(f"{metrics['loss']:.3f}" if metrics else "-" for metrics in (before, after)),
            *(f"{metrics['exact_match']:.0%}" if "exact_match" in metrics else "-" for metrics in (before, after)),
        )
    return table


def mix_table(coordinator: Cluster, spec: RunSpec, mix: Sequence[Example], folder: Path) -> Table:
    """The global adapter on a mix of all tasks, before training and after, at every rank."""
    table = Table(title=f"Global adapter: a mix of all tasks, {len(mix)} held-out examples")
    for column in ("rank", "loss", "exact match", "energy kept"):
        table.add_column(column, justify="right")
    detail = json.loads(coordinator.client("rounds", RUN, str(spec.rounds), "--json"))
    kept = {entry["rank"]: entry["share"] for entry in detail["summary"]["energy_kept"]}
    models = Models()
    for rank, number in [(RANKS[0], 0), *((rank, spec.rounds) for rank in RANKS)]:
        target = folder / (f"rank-{rank}" if number else "before")
        coordinator.client("export", RUN, "--rank", str(rank), "--round", str(number), "-o", str(target))
        metrics = evaluate(spec, target, mix, device="cpu", models=models)
        label, share = (str(rank), f"{kept[rank]:.1%}") if number else ("before", "")
        exact = f"{metrics['exact_match']:.0%}" if "exact_match" in metrics else "-"
        table.add_row(label, f"{metrics['loss']:.3f}", exact, share)
    return table


def mixed(people: Sequence[Participant], spec: RunSpec) -> list[Example]:
    """At most 24 held-out examples of every data file."""
    files = {person.data: person for person in people}  # several participants may share a file
    parts = []
    for person in files.values():
        heldout = () if person.heldout is None else (person.heldout,)
        options = DataOptions((person.data,), heldout, HELDOUT_FRACTION)
        parts.append(load_data(options, spec.model, seed=spec.seed).heldout)
    return [example for heldout in parts for example in heldout[:24]]


def demo(folder: Path, model: str, data: Sequence[Path], rounds: int) -> None:
    """The whole demo in `folder`."""
    people = participants(folder, data)
    spec = definition(model, rounds, small=not data and model == str(MODEL))
    run_spec = RunSpec.model_validate_json(json.dumps(spec))
    mix = mixed(people, run_spec)
    if not mix:
        raise DataError("nothing is held out of these files; give files with more rows.")
    with cluster(folder) as coordinator:
        console.print(f"Coordinator at {coordinator.url}; its data and the agents' are in {folder}")
        coordinator.create_run(spec)
        console.print(f"Run {RUN!r} started: {rounds} rounds, ranks {', '.join(map(str, RANKS))}, strategy flexlora")
        with agents([start(coordinator, person) for person in people]) as started:
            records = watch(started, {person.name: person.rank for person in people})
        console.print(participants_table(people, records, rounds))
        exported = folder / "exported"
        console.print(mix_table(coordinator, run_spec, mix, exported))
        if spec["model"]["id"] == str(MODEL):
            console.print(
                "The base model has read every fact. What it learns here is to answer a question, and to stop."
            )
        show_texts(console, model, exported / f"rank-{RANKS[-1]}", mix)
        console.print(f"Every exported adapter is an ordinary PEFT folder; {kept(exported)}")


def kept(exported: Path) -> str:
    """Where the exported adapters are when the demo has ended."""
    temporary = exported.parent.name.startswith(FOLDER_PREFIX)
    return "scripts/demo --folder FOLDER keeps them" if temporary else f"they lie in {exported}"


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--model", default=str(MODEL), help="base model: a folder, or a hub id (default: the demo's own)"
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], help="data files, dealt to the four participants in turn"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--folder", type=Path, help="where everything lies (default: a temporary folder, deleted at the end)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
    if (options.model != str(MODEL)) != bool(options.data):
        parser.error("--model and --data go together: the demo's own tasks ask about the demo's own world")
    if options.model == str(MODEL):
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked of a model hub, nor by the agents
    if options.folder is not None and options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty; name another folder")
    try:
        with ExitStack() as stack:
            folder = options.folder or Path(stack.enter_context(TemporaryDirectory(prefix=FOLDER_PREFIX)))
            demo(folder.resolve(), options.model, options.data, options.rounds)
    except (AgentEndedError, TrainingError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
