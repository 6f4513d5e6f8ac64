"""Comparisons: what is tuned on, what is run, what is kept, and wrong definitions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.evidence.resumable import Done, Job
from flexlora_simulation.evidence.table import read
from flexlora_simulation.methods import comparison as module
from flexlora_simulation.methods.compared_run import compared_run
from flexlora_simulation.methods.comparison import compare
from flexlora_simulation.methods.comparison_file import Comparison, load_comparison
from tests.support.simulated import tiny_experiment

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    partition = {"participants": 4, "unseen": 1, "heldout": 0.2}
    made = tiny_experiment(tmp_path_factory.mktemp("materials"), partition=partition, evaluation={"on": ["test"]})
    content: dict[str, Any] = json.loads(made.model_dump_json(exclude_defaults=True))
    return content


@pytest.fixture
def write(experiment: dict[str, Any], tmp_path: Path) -> Write:
    def written(**changes: Any) -> Path:
        content = {
            "name": "tiny",
            "experiment": experiment,
            "methods": ["flexlora", "view"],
            "rates": [0.01, 0.02, 0.04],
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**content, "seeds": [0, 1], **changes}))
        return path

    return written


class Made:
    """In the place of runs: best at a rate for each method; `failing` (method, rate) fail."""

    def __init__(self, failing: tuple[tuple[str, float], ...] = ()) -> None:
        self.jobs: list[Job] = []
        self.failing = failing

    def __call__(self, comparison: Comparison, folder: Path, job: Job) -> Done:
        self.jobs.append(job)
        if (job["method"], job["rate"]) in self.failing:
            return {"failed": "it diverged"}
        value = 1 - abs(job["rate"] - {"flexlora": 0.02, "view": 0.04}[job["method"]])
        if comparison.tuned_by == "loss" and job["split"] == "tuning":
            value = -value
        on = "heldout" if job["split"] == "tuning" else "test"
        return {"rounds": [2], "values": {on: {"2": [value], "4": [value]}}, "uses": {"2": 2, "4": 4}}


def test_each_method_is_measured_at_its_own_best_rate_on_the_same_seeds(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(failing=(("flexlora", 0.04),))
    monkeypatch.setattr(module, "compared_run", made)
    found = compare(load_comparison(write()), tmp_path / "out")
    tuning, measured = made.jobs[:6], made.jobs[6:]
    assert {(job["split"], job["seed"]) for job in tuning} == {("tuning", 1000)}
    assert [(job["method"], job["rate"], job["seed"], job["split"]) for job in measured] == [
        (name, rate, seed, "measured") for seed in (0, 1) for name, rate in (("flexlora", 0.02), ("view", 0.04))
    ]
    assert read(tmp_path / "out" / "tiny.json") == found
    assert (found.population, found.metric, len(found.runs)) == ({"": {2: 2, 4: 1}}, "accuracy", 9)  # one is unseen
    assert found.definition["experiment"]["workload"]["model"] == "bert"  # wherever it lay


def test_more_seeds_are_added_to_what_is_there_but_not_another_experiment(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compared_run", made := Made())
    compare(load_comparison(write()), tmp_path / "out")
    before = len(made.jobs)
    compare(load_comparison(write(seeds=[0, 1, 2])), tmp_path / "out")
    assert [(job["method"], job["seed"]) for job in made.jobs[before:]] == [("flexlora", 2), ("view", 2)]
    with pytest.raises(ExperimentError, match="holds a comparison of another cells"):
        compare(load_comparison(write(cells={"even": {"partition": {"alpha": 9.0}}})), tmp_path / "out")


def test_a_method_that_fails_at_every_rate_says_why(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compared_run", Made(failing=tuple(("view", rate) for rate in (0.01, 0.02, 0.04))))
    with pytest.raises(SimulationError, match="'view' failed at every learning rate: it diverged"):
        compare(load_comparison(write()), tmp_path / "out")


def test_rates_are_tuned_on_what_seen_participants_hold_out_alone(write: Write) -> None:
    comparison = load_comparison(write(cells={"even": {"partition": {"alpha": 9.0}}}))
    tuning = comparison.experiment_of("even", 0.04, 7, tuning=True)
    assert (tuning.evaluation.on, tuning.seed, tuning.partition.alpha) == (("heldout",), 7, 9.0)
    measured = comparison.experiment_of("even", 0.04, 7)
    assert (measured.evaluation.on, measured.run["training"]) == (
        ("test",),
        {"max_steps": 1, "batch_size": 4, "max_length": 16, "learning_rate": 0.04},
    )


def test_rates_may_be_tuned_by_the_loss_without_answers(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = load_comparison(write(tuned_by="loss"))
    assert comparison.experiment_of("", 0.04, 7, tuning=True).evaluation.answers == 0
    assert comparison.experiment_of("", 0.04, 7).evaluation.answers == 100
    monkeypatch.setattr(module, "compared_run", Made())
    measured = [run for run in compare(comparison, tmp_path / "out").runs if run.split == "measured"]
    assert {(run.method, run.rate) for run in measured} == {("flexlora", 0.02), ("view", 0.04)}


@pytest.mark.slow
def test_what_rates_are_tuned_by_is_what_is_measured_of_the_held_out_examples(write: Write, tmp_path: Path) -> None:
    """A real run of each; the accuracy of a few examples is a fraction of them, their loss is not."""
    job = {"cell": "", "method": "flexlora", "rate": 0.01, "seed": 1000, "split": "tuning"}
    by_metric, by_loss = (
        compared_run(load_comparison(write(tuned_by=one)), tmp_path / one, job)["values"]["heldout"]
        for one in ("metric", "loss")
    )
    [accuracy], [loss] = ({values[-1] for values in found.values()} for found in (by_metric, by_loss))
    assert 0 <= accuracy <= 1 < loss < 10


def test_a_method_may_have_rates_of_its_own(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compared_run", made := Made())
    compare(load_comparison(write(rates_of={"view": [2.0, 4.0]}, seeds=[0])), tmp_path / "out")
    tuning = [(job["method"], job["rate"]) for job in made.jobs if job["split"] == "tuning"]
    assert tuning == [*(("flexlora", rate) for rate in (0.01, 0.02, 0.04)), ("view", 2.0), ("view", 4.0)]


def test_a_seed_may_be_the_workloads_too(write: Write) -> None:
    """So that each seed has a problem of its own, the same for all methods."""
    comparison = load_comparison(write(seeded_workload=True))
    assert [comparison.experiment_of("", seed=seed).workload.options["seed"] for seed in (0, 7)] == [0, 7]
    assert "seed" not in load_comparison(write()).experiment_of("", seed=7).workload.options


def test_the_experiment_may_lie_in_a_file_of_its_own(write: Write, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "data").mkdir()
    content = {**experiment, "workload": {**experiment["workload"], "data": "data"}}
    (tmp_path / "there" / "one.yaml").write_text(yaml.safe_dump(content))
    found = load_comparison(write(experiment="there/one.yaml"), model="elsewhere").experiment_of("").workload
    assert (found.data, found.model) == (str(tmp_path / "there" / "data"), "elsewhere")


def test_paths_are_relative_to_the_file_or_to_where_the_command_is(
    write: Write, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("there/data", "here/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "there" / "parts.jsonl").touch()
    content = {**experiment, "partition": {"by": "file", "path": "parts.jsonl"}}  # which may hold examples out
    (tmp_path / "there" / "one.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path / "here")
    found = load_comparison(write(experiment="there/one.yaml"), data="data").experiment_of("")
    assert found.workload.data == str(tmp_path / "here" / "data")
    assert found.partition.path == str(tmp_path / "there" / "parts.jsonl")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ["flexlora", "best"]}, "there is no method 'best'"),
        ({"rates": [0.02, 0.01]}, "rates: give them in ascending order"),
        ({"rates_of": {"view": [0.2, 0.1]}}, "rates_of.view: give them in ascending order"),
        ({"rates_of": {"fedavg": [0.1]}}, "rates_of: 'fedavg' is none of the methods"),
        ({"baseline": "bucket"}, "baseline: 'bucket' is none of the methods"),
        ({"tuning_seeds": [1]}, "tuning_seeds: no seed both chooses"),
        ({"cells": {"no": {"partition": {"heldout": 0.0}}}}, r"partition\.heldout: rates are chosen by"),
        ({"cells": {"no": {"partition": {"alpha": -1}}}}, r"partition\.alpha"),
        ({"seeds": []}, "seeds: "),
        ({"experiment": "missing.yaml"}, "no readable YAML"),
        ({"colour": "red"}, "colour: "),
        ({"cells": {"one": {"evaluation": {"ranks": "largest"}}}}, "evaluation.ranks: leave it out"),
    ],
)
def test_a_wrong_definition_is_refused_in_a_sentence(write: Write, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        load_comparison(write(**changes))


@pytest.mark.slow
def test_a_comparison_runs_and_goes_on_where_it_was(write: Write, tmp_path: Path) -> None:
    told: list[str] = []
    comparison = load_comparison(write(rates=[0.01, 0.02]))
    found = compare(comparison, tmp_path / "out", processes=2, tell=told.append)
    assert len(told) == len(found.runs) == 4 + 4
    measured = [run for run in found.runs if run.split == "measured"]
    assert [run.rounds for run in measured] == [(0, 1, 2)] * 4
    assert [run.uses for run in measured] == [{2: 2, 4: 4}, {2: 4, 4: 4}] * 2
    assert all(run.bytes_down and run.bytes_down[-1] > run.bytes_down[1] > run.bytes_down[0] == 0 for run in measured)
    assert not list((tmp_path / "out").rglob("*.safetensors"))

    kept = (tmp_path / "out" / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "runs.jsonl").write_text("".join(kept[:-1]) + kept[-1][:40])  # killed as it wrote the last
    told.clear()
    again = compare(comparison, tmp_path / "out", processes=1, tell=told.append)
    assert len(told) == 1
    assert [run.values for run in again.runs] == [run.values for run in found.runs]
