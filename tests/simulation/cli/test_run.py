"""`flexlora-sim` on a tiny federation, from its file to the coordinator that serves what came out of it."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from flexlora_client.errors import Exit
from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from flexlora_simulation import simulation
from flexlora_simulation.cli import main
from flexlora_simulation.cli.progress import Progress
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.results.tables import ROWS, read_rows
from tests.support.command import Result, call
from tests.support.kit import OPERATOR_KEY, Clock, served
from tests.support.simulated import Here, folder_with_database, here, tiny_experiment


def sim(*arguments: str | Path) -> Result:
    return call(*arguments, program=main)


@dataclass(frozen=True)
class Ran:
    """A finished experiment, and what the command said."""

    file: Path
    folder: Path
    said: Result


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    """A process of its own would load PyTorch anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "Processes", lambda experiment, folder, processes, device: here(experiment, folder))
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    materials = tmp_path_factory.mktemp("materials")
    experiment = tiny_experiment(
        materials, partition={"participants": 5, "unseen": 1, "heldout": 0.2}, evaluation={"on": ["test", "heldout"]}
    )
    content = experiment.model_dump(mode="json")
    data, model = (content["workload"].pop(name) for name in ("data", "model"))
    file, folder = materials / "tiny.yaml", folder_with_database(materials / "run")
    file.write_text(yaml.safe_dump(content))
    said = sim(
        "run", file, "--folder", folder, "--data", data, "--model", model, "--set", "run.rounds=1", "--json",
        *(("--tensorboard",) if find_spec("tensorboard") else ()),
    )  # fmt: skip
    file.write_text(json.dumps(json.loads((folder / "experiment.json").read_bytes())))
    return Ran(file, folder, said)


def test_a_run_tells_people_its_rounds_and_programs_its_rows(ran: Ran) -> None:
    assert ran.said.code == Exit.OK, ran.said.err
    assert "round 1 of 1: 3 of 3 updates, train loss 1." in ran.said.err
    assert "round 1: accuracy 0." in ran.said.err
    rows = [json.loads(line) for line in ran.said.out.splitlines()]
    assert rows == [json.loads(line) for line in (ran.folder / ROWS).read_text().splitlines()]
    assert {row["table"] for row in rows} == {"rounds", "participants", "evaluations", "energy"}
    assert set(pd.read_parquet(ran.folder / "evaluations.parquet").on) == {"test", "heldout"}


def test_the_same_command_again_shows_the_tables(ran: Ran) -> None:
    before = (ran.folder / ROWS).read_bytes()
    again = sim("run", ran.file, "--folder", ran.folder, "--processes", "2")
    assert (again.code, again.err) == (Exit.OK, "")
    assert (ran.folder / ROWS).read_bytes() == before
    heading, *lines = again.out.splitlines()
    assert heading.startswith("round  virtual time  updates  train loss  test accuracy, r=2  test accuracy, r=4")
    assert [line.split()[0] for line in lines[:2]] == ["0", "1"]
    taking_part = [line.split()[:3] for line in lines[3:] if line.startswith(("2", "4"))]
    assert sum(int(accepted) for _, _, accepted in taking_part) == 3
    assert again.out.endswith(f"The tables are in {ran.folder}.\n")
    assert sim("show", ran.folder).out == again.out.split("\nThe tables are in")[0]


@pytest.mark.parametrize(("device", "processes"), [("cuda", 3), ("cuda:1", 1), ("mps", 1)])
def test_without_a_number_a_gpu_has_one_process(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, device: str, processes: int
) -> None:
    """Each of them holds the base model."""
    given = list[tuple[int, str]]()

    def made(experiment: Experiment, folder: Path, processes: int, device: str) -> Here:
        given.append((processes, device))
        return here(experiment, folder)

    monkeypatch.setattr(simulation, "Processes", made)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert sim("run", ran.file, "--folder", ran.folder, "--device", device).code == Exit.OK
    assert given == [(processes, device)]


def test_another_experiment_needs_another_folder(ran: Ran) -> None:
    done = sim("run", ran.file, "--folder", ran.folder, "--seed", "1")
    assert (done.code, done.out) == (Exit.BAD_INPUT, "")
    assert done.err == f"error: {ran.folder} holds an experiment of another seed; give this one another folder\n"


def test_show_takes_another_metric(ran: Ran) -> None:
    assert "test loss, r=2" in sim("show", ran.folder, "--metric", "loss").out
    nothing = sim("show", ran.folder, "--metric", "beauty")
    assert (nothing.code, nothing.out) == (Exit.BAD_INPUT, "")
    assert nothing.err.startswith("error: nothing was measured by beauty; there are accuracy, ")


def test_check_says_what_would_be_run(ran: Ran, tmp_path: Path) -> None:
    done = sim("check", ran.file, "--set", "run.rounds=7")
    assert done.code == Exit.OK, done.err
    said = {line[:19].strip(): line[19:].strip() for line in done.out.splitlines()}
    assert said["workload"] == "banking77, measured by accuracy"
    assert said["participants"] == "4 that train, 1 unseen"
    assert said["of rank 2"] == "2"
    assert said["rounds"] == "7, with the updates of 3 participants each"
    assert said["trainings"] == "about 21, of 1 optimizer steps in the mean"
    refused = sim("check", ran.file, "--set", "run.strategy=magic")
    assert (refused.code, refused.out) == (Exit.BAD_INPUT, "")
    assert refused.err.startswith("error: run: ")
    assert "magic" in refused.err


def test_tensorboard_has_every_round(ran: Ran) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(ran.folder / "tensorboard")).Reload()
    rounds = pd.read_parquet(ran.folder / "rounds.parquet")
    told = {event.step: event.value for event in found.Scalars("round/bytes_up")}
    assert told == dict(zip(rounds["round"], rounds.bytes_up, strict=True))
    assert [event.step for event in found.Scalars("round/train_loss")] == [1]
    assert [event.step for event in found.Scalars("test/accuracy at rank 4")] == [0, 1]
    assert [event.step for event in found.Scalars("energy/kept at rank 2")] == [1]


def test_the_coordinator_serves_the_folder(ran: Ran, tmp_path: Path) -> None:
    """As `flexlora-server serve` does with FLEXLORA_DATA_DIR=FOLDER/coordinator."""
    folder = ran.folder / "coordinator"
    store = Store(Settings.model_validate({"data_dir": folder}).url)
    with served(store, folder, Clock()) as site:
        env = {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
        listed = call("rounds", "tiny", "--json", env=env)
        exported = call("export", "tiny", "--rank", "4", "--exact", "-o", tmp_path / "exported", env=env)
    store.close()
    assert [(one["number"], one["state"]) for one in listed.json["rounds"]] == [(1, "PUBLISHED"), (0, "PUBLISHED")]
    assert exported.code == Exit.OK, exported.err
    assert (tmp_path / "exported" / "adapter_model.safetensors").stat().st_size > 1000


def test_bars_on_a_terminal(ran: Ran) -> None:
    console = Console(force_terminal=True, width=100, record=True, file=io.StringIO())
    with Progress(rounds=1, done=0, updates=3, metric="accuracy", console=console) as progress:
        for row in read_rows(ran.folder):
            progress(row)
    text = console.export_text()
    assert "rounds" in text
    assert "1/1" in text
